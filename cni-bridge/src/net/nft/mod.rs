//! nf_tables over netlink: what is needed to keep tables whose map elements belong to attachments.
//!
//! - [`Table`]: a table as it should be; elements come and go with their owners
//! - [`Batch`]: an atomic transaction
//! - [`Expression`]: what rules are made of

mod batch;
mod expression;
pub mod foreign;
mod hooks;
mod query;
mod retire;
mod table;
pub(crate) mod wire;

pub use batch::{Batch, Chain, Element, Field, Hook, Map, Rule, TableFamily, TableId, Target};
pub use expression::{Expression, HeaderField, Meta, Verdict};
pub use hooks::lost_hook;
pub use query::{FoundRule, GENERATION, chain_exists, element, elements, generation, rules, rules_of};
pub use table::{Conflict, InsertError, OnDemand, Removed, Table};
