//! The first process of a test guest, and the driver that it starts. Runs in a guest only, never on a machine.
//!
//!   vminit          mounts, starts the driver, reaps, powers off; refuses to be anything but process 1
//!   vminit drive    takes the job's steps
//!   vminit serve    takes them as a service of systemd, and powers off

use anyhow::{Result, bail};
use e2e::guest::init;

fn main() -> Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("drive") => init::drive(),
        Some("serve") => init::serve(),
        None if std::process::id() == 1 => init::first(),
        other => bail!("not process 1, and {other:?} is no command: drive or serve"),
    }
}
