//! Whether the kernel still calls a table's chains.

use super::query::{chain_exists, elements};
use super::table::Table;
use crate::net::error::NetError;
use crate::net::socket::Socket;

/// The name of a chain that the kernel is to call and that is gone, while elements of owners are there; `None` where
/// all is in place, or nobody depends on it.
///
/// # Errors
/// [`NetError`].
pub fn lost_hook(socket: &mut Socket, table: &Table) -> Result<Option<String>, NetError> {
    for (chain, _) in table.chains.iter().filter(|(chain, _)| chain.hook.is_some()) {
        if chain_exists(socket, table.id(), &chain.name)? {
            continue;
        }
        for map in &table.maps {
            if elements(socket, table.id(), map.name)?.is_some_and(|found| !found.is_empty()) {
                return Ok(Some(chain.name.clone()));
            }
        }
    }
    Ok(None)
}
