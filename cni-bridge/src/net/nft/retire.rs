//! Chains on demand that nothing jumps to any more, and the rules that went with them.
//!
//! The kernel itself counts who uses a chain and refuses to remove one in use, so that an ADD that comes at the same
//! time loses nothing: it finds the chain, or makes it again.

use rustix::io::Errno;

use super::batch::{Batch, Target};
use super::query::{FoundRule, rules_of, uses_of};
use super::table::{Removed, Table};
use crate::net::error::NetError;
use crate::net::socket::Socket;

/// Removes the chains that elements of `removed` jumped to, where those were the last.
///
/// # Errors
/// [`NetError`].
pub(super) fn unused(socket: &mut Socket, table: &Table, removed: &Removed) -> Result<(), NetError> {
    let mut chains: Vec<&str> = removed
        .iter()
        .filter_map(|(_, element)| match &element.data {
            Target::Jump(chain) => Some(chain.as_str()),
            Target::Value(_) => None,
        })
        .filter(|chain| !chain.is_empty() && table.chains.iter().all(|(fixed, _)| fixed.name != *chain))
        .collect();
    chains.sort_unstable();
    chains.dedup();
    chains.into_iter().try_for_each(|chain| retire(socket, table, chain))
}

/// More users than a chain has that only rules of its own use.
const MANY: u32 = 16;

fn retire(socket: &mut Socket, table: &Table, chain: &str) -> Result<(), NetError> {
    let Some(uses) = uses_of(socket, table.id(), chain)?.filter(|uses| *uses < MANY) else { return Ok(()) };
    let own = rules_of(socket, table.id(), chain)?.len();
    let mut beside = Vec::new();
    // Chains without rules of their own collect those that come beside chains on demand.
    for (fixed, _) in table.chains.iter().filter(|(_, rules)| rules.is_empty()) {
        let found = rules_of(socket, table.id(), &fixed.name)?;
        beside.extend(found.into_iter().filter(|rule| goes_with(rule, chain)));
    }
    let jumping = beside.iter().filter(|rule| rule.jumps_to().as_deref() == Some(chain)).count();
    if uses as usize > own + jumping {
        return Ok(());
    }
    let mut batch = Batch::new(table.id());
    beside.iter().for_each(|rule| batch.delete_rule(&rule.chain, rule.handle));
    batch.flush_chain(chain);
    batch.delete_chain(chain);
    match batch.commit(socket, None) {
        // Used again, or removed by another.
        Err(error) if error.is_missing() || error.errno() == Some(Errno::BUSY) => Ok(()),
        outcome => outcome,
    }
}

/// Whether a collected rule is there for `chain` alone: it jumps there, or names what the chain is named after.
fn goes_with(rule: &FoundRule, chain: &str) -> bool {
    let named = |text: &str| text.rsplit_once(' ').map(|(_, what)| what.replace(':', "-"));
    let after = chain.split_once('_').map(|(_, what)| what.to_owned());
    match rule.jumps_to() {
        Some(target) => target == chain,
        None => after.is_some() && named(&rule.comment) == after,
    }
}
