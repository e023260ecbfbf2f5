//! Chains as they are found: where the kernel calls them.

use super::batch::{Chain, Kind, TableId, message};
use super::wire::{Attributes, attribute, text};
use crate::net::error::NetError;
use crate::net::socket::{Answer, Socket};

/// What a packet becomes that no rule decides on.
const ACCEPT: u32 = 1;

/// A chain as it is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FoundChain {
    /// Type, hook's number and priority, where the kernel calls it.
    hook: Option<(String, u32, i32)>,
    policy: u32,
}

impl FoundChain {
    /// Whether it is called as `wanted` is to be, and accepts what its rules do not decide on.
    pub fn is_called_as(&self, wanted: &Chain) -> bool {
        let hook = wanted.hook.map(|hook| (hook.kind.to_owned(), hook.number, hook.priority));
        self.hook == hook && self.policy == ACCEPT
    }
}

/// The chains with these names, asked for at once; `None` for what is not there.
///
/// # Errors
/// [`NetError`].
pub(super) fn chains_at(
    socket: &mut Socket,
    table: TableId<'_>,
    chains: &[&Chain],
) -> Result<Vec<Option<FoundChain>>, NetError> {
    let question = |chain: &&Chain| {
        let mut body = Attributes::default();
        body.text(1, table.name).text(3, &chain.name);
        let what = format!("looking up chain {} of nf_tables table {table}", chain.name);
        message(what, (table.family, Kind::GetChain), 0, body)
    };
    let questions: Vec<_> = chains.iter().map(question).collect();
    Ok(socket.ask_each(&questions)?.into_iter().map(|answer| answer.map(read)).collect())
}

fn read(answer: Answer) -> FoundChain {
    let body = answer.body.get(4..).unwrap_or_default();
    let number = |list, kind| attribute(list, kind)?.try_into().ok().map(u32::from_be_bytes);
    let hook = attribute(body, 4).map(|hook| {
        let kind = attribute(body, 7).map(text).unwrap_or_default();
        (kind, number(hook, 1).unwrap_or_default(), number(hook, 2).unwrap_or_default() as i32)
    });
    FoundChain { hook, policy: number(body, 5).unwrap_or(ACCEPT) }
}

/// Whether a table's chains are switched off; not where it is not there.
///
/// # Errors
/// [`NetError`].
pub(super) fn is_dormant(socket: &mut Socket, table: TableId<'_>) -> Result<bool, NetError> {
    const FLAGS: u16 = 2;
    const DORMANT: u32 = 1;
    let mut body = Attributes::default();
    body.text(1, table.name);
    let what = format!("looking up nf_tables table {table}");
    let answers = socket.ask_each(&[message(what, (table.family, Kind::GetTable), 0, body)])?;
    let flags = |answer: Answer| attribute(answer.body.get(4..)?, FLAGS)?.try_into().ok();
    let flags = answers.into_iter().flatten().find_map(flags).map(u32::from_be_bytes);
    Ok(flags.is_some_and(|flags| flags & DORMANT != 0))
}
