//! Random operations on our plugins end with nothing left.

use anyhow::Result;
use e2e::cni::Host;
use e2e::cni::random::{self, Plan};

/// So many take less than a minute on two busy processors.
const OPS: usize = 600;

#[test]
fn random_operations_leave_nothing() -> Result<()> {
    let plan = Plan::from_env(OPS)?;
    println!("E2E_CNI_OPS={} E2E_SEED={}", plan.ops, plan.seed);
    Host::run("random_operations_leave_nothing", move |host| {
        let tally = random::run(host, plan)?;
        println!("{tally}");
        Ok(())
    })
}
