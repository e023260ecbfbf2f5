//! Holds a test node's namespaces, or runs a program inside them. Started by the harness, not by people.
//!
//!   e2e-node hold DIR           makes the namespaces, says `ready`, and cleans up when its standard input ends
//!   e2e-node enter PID PROG …   becomes PROG inside the namespaces that PID holds

use anyhow::{Context, Result, bail};
use e2e::exec::Program;
use e2e::{node, ns};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some("hold") => node::hold(args.next().context("hold needs a directory")?.as_ref()),
        Some("enter") => {
            let holder = args.next().context("enter needs a pid")?.parse()?;
            let program = Program::new(args.next().context("enter needs a program")?).args(args);
            ns::enter(holder)?;
            Err(program.replace()).with_context(|| format!("run {program}"))
        }
        other => bail!("unknown command {other:?}: hold or enter"),
    }
}
