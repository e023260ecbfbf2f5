//! nf_tables over netlink: what is needed to keep tables whose map elements belong to attachments.
//!
//! - [`Table`]: a table as it should be; elements come and go with their owners
//! - [`Batch`]: an atomic transaction
//! - `register`: who has which elements, so that nobody lists everybody's
//! - [`Expression`]: what rules are made of

mod alike;
mod batch;
mod chains;
mod expression;
mod hooks;
mod query;
mod register;
mod retire;
mod table;
mod whole;
pub(crate) mod wire;

pub use batch::{Batch, Chain, Element, Field, Hook, Map, Rule, TableFamily, TableId, Target};
pub use expression::{Expression, HeaderField, Meta, Verdict};
pub use hooks::lost_hook;
pub use query::{
    FoundRule, GENERATION, TABLES, Tables, all_rules, chain_exists, element, elements, generation, rules_of,
};
pub use table::{Conflict, InsertError, OnDemand, Place, Removed, Table};
