//! Random operations on several networks at once, as careless runtimes and hosts do them: anything may be killed,
//! forgotten, repeated or interrupted by a reboot, and in the end nothing is left.
//!
//! `E2E_CNI_OPS` says how many, `E2E_SEED` with which seed; the seed is printed, and with it a run can be repeated as
//! far as the kernel's own timing allows.

mod act;
mod audit;
mod choose;
mod model;
mod networks;

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result};

use super::host::Host;
use super::plugins::Maker;
use crate::dice::Dice;
use act::Act;
use model::Model;

/// Operations between two looks at everything.
const AUDIT_EVERY: usize = 50;

/// How much is to be done.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Operations.
    pub ops: usize,
    /// Where the numbers start.
    pub seed: u64,
}

impl Plan {
    /// `ops` operations with a new seed, unless the environment says otherwise.
    pub fn from_env(ops: usize) -> Result<Self> {
        let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>()).transpose();
        let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.subsec_nanos();
        Ok(Self {
            ops: number("E2E_CNI_OPS").context("E2E_CNI_OPS")?.map_or(ops, |ops| ops as usize),
            seed: number("E2E_SEED").context("E2E_SEED")?.unwrap_or(u64::from(clock)),
        })
    }
}

/// How often what was done.
#[derive(Clone, Debug, Default)]
pub struct Tally(BTreeMap<&'static str, usize>);

impl Tally {
    fn count(&mut self, what: &'static str) {
        *self.0.entry(what).or_default() += 1;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> = self.0.iter().map(|(what, times)| format!("{times} {what}")).collect();
        f.write_str(&parts.join(", "))
    }
}

/// Carries out the plan with our plugins; fails at the first thing that is not as it must be.
pub fn run(host: &Host, plan: Plan) -> Result<Tally> {
    let networks = networks::all()?;
    let plugins = Maker::Ours.plugins(host)?;
    let mut act = Act {
        host,
        plugins,
        networks,
        model: Model::default(),
        dice: Dice::new(plan.seed),
        tally: Tally::default(),
        reboots: 0,
    };
    act.warm_up()?;
    let before = host.snapshot()?;
    for op in 0..plan.ops {
        let at = || format!("operation {op} of seed {}", plan.seed);
        act.step().with_context(at)?;
        if op % AUDIT_EVERY == AUDIT_EVERY - 1 {
            act.audit().with_context(at)?;
        }
    }
    act.end_all().context("the end of all that is left")?;
    // A reboot takes bridges along: the first look saw them.
    act.warm_up()?;
    host.expect_no_leaks(&before)
        .with_context(|| format!("after {} operations of seed {}", plan.ops, plan.seed))?;
    Ok(act.tally)
}
