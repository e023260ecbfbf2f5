//! `cri-monitor`: the per-pod process.

fn main() -> std::process::ExitCode {
    cri_server::monitor::startup::main()
}
