//! A table as it should be, whose elements belong to owners.
//!
//! Adding elements is one batch of elements only, unless the table is not there: that is asked before, because a
//! refused batch costs the kernel 10 ms. Notes of who has what go in with the elements, so that one owner's are taken out
//! without a look at all others'. Removing the last owner's elements removes the table, unless anything else changed in
//! between.

use netlink_packet_core::NLM_F_EXCL;
use rustix::io::Errno;

use super::batch::{Batch, Chain, Element, Map, Rule, TableFamily, TableId, Target};
use super::query::{Tables, chain_exists, elements, elements_at, generation};
use super::register::{self, OWNED};
use super::retire;
use crate::net::error::NetError;
use crate::net::socket::Socket;

/// How often a change is tried again when others change nf_tables meanwhile.
pub(super) const ATTEMPTS: usize = 16;

/// The fixed part of a table.
#[derive(Debug, Clone)]
pub struct Table {
    /// What packets it sees.
    pub family: TableFamily,
    /// Name.
    pub name: &'static str,
    /// Its maps.
    pub maps: Vec<Map>,
    /// Its chains with their rules, those that are jumped to first.
    pub chains: Vec<(Chain, Vec<Rule>)>,
}

/// A chain that elements jump to, made with the first of them. Its name says all that is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnDemand {
    /// Name.
    pub chain: String,
    /// Its rules.
    pub rules: Vec<Rule>,
    /// A rule that goes with it at the end of a fixed chain.
    pub beside: Option<(&'static str, Rule)>,
}

/// What to do when an element's key is taken by another owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conflict {
    /// Refuse, naming the holder.
    Refuse,
    /// Take over: whoever holds the key has lost the right to it.
    Replace,
}

/// Elements that were removed, with the names of their maps.
pub type Removed = Vec<(&'static str, Element)>;

/// How elements get into a table: [`Table::insert`] or [`Table::mend`].
pub type Place =
    fn(&Table, &mut Socket, &[(&'static str, Element, Conflict)], &[OnDemand]) -> Result<(), InsertError>;

/// Why elements were not added.
#[derive(Debug, thiserror::Error)]
pub enum InsertError {
    /// The key of an element is taken.
    #[error("element {position} is held by {holder}")]
    Held {
        /// Which of the elements.
        position: usize,
        /// The holder's owner tag.
        holder: String,
    },
    /// Netlink.
    #[error(transparent)]
    Net(#[from] NetError),
}

impl Table {
    /// Adds elements of one owner in one transaction. What it had of an earlier attempt goes, if any of it is in the way.
    ///
    /// # Errors
    /// [`InsertError::Held`] where the key of an element is held by another owner and must not be taken over.
    pub fn insert(
        &self,
        socket: &mut Socket,
        wanted: &[(&'static str, Element, Conflict)],
        chains: &[OnDemand],
    ) -> Result<(), InsertError> {
        let mut declare = !self.is_declared(socket, chains)?;
        let mut stale: Vec<(&'static str, Vec<u8>)> = Vec::new();
        let mut tries = 0;
        loop {
            tries += 1;
            let mut batch = Batch::new(self.id());
            if declare {
                self.declare(socket, &mut batch, chains)?;
            }
            for (map, key) in &stale {
                batch.delete_element(map, key);
            }
            let first_element = batch.len();
            self.add(&mut batch, wanted);
            match batch.commit(socket, None) {
                Ok(()) => return Ok(()),
                Err(error) if tries == ATTEMPTS => return Err(error.into()),
                Err(NetError::Refused { position, refusal, .. })
                    if refusal.errno == Errno::EXIST && position >= first_element =>
                {
                    stale = self.stale(socket, wanted)?;
                }
                // A chain on demand appeared meanwhile: without declaring it, then.
                Err(error) if error.is_exists() => declare = false,
                Err(error) if error.is_missing() => (declare, stale) = (true, Vec::new()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Makes the fixed part, or makes it whole again.
    ///
    /// # Errors
    /// [`NetError`].
    pub fn ensure(&self, socket: &mut Socket) -> Result<(), NetError> {
        let mut batch = Batch::new(self.id());
        self.declare(socket, &mut batch, &[])?;
        batch.commit(socket, None)
    }

    /// Adds elements of one owner, and the notes of them.
    pub(super) fn add(&self, batch: &mut Batch, wanted: &[(&'static str, Element, Conflict)]) {
        wanted.iter().for_each(|(map, element, _)| batch.add_element(map, element));
        let notes = register::notes(wanted.iter().map(|(map, element, _)| (*map, element)));
        notes.iter().for_each(|note| batch.add_note(note));
    }

    /// Removes every element of one owner, where `tables` has the table; otherwise as [`Table::remove`].
    ///
    /// # Errors
    /// [`NetError`].
    pub fn remove_of(&self, socket: &mut Socket, tables: &Tables, owner: &str) -> Result<Removed, NetError> {
        if !tables.has(self.family as u8, self.name) {
            return Ok(Removed::new());
        }
        let by_listing = |socket: &mut Socket| self.remove(socket, &|tag| tag == owner);
        let held = register::holding(socket, self, owner)?;
        let Some(held) = held.filter(|held| !held.is_everything()) else { return by_listing(socket) };
        let mut batch = Batch::new(self.id());
        held.elements.iter().for_each(|(map, element)| batch.delete_element(map, &element.key));
        held.notes.iter().for_each(|key| batch.delete_element(OWNED.name, key));
        match batch.commit(socket, None) {
            // Some of it went meanwhile.
            Err(error) if error.is_missing() => return by_listing(socket),
            other => other?,
        }
        let mut removed = held.elements;
        // Owners that go together saw each other's notes; so each looks again after its own are gone.
        if register::is_empty(socket, self)? {
            removed.extend(by_listing(socket)?);
        }
        self.retire(socket, &removed)?;
        Ok(removed)
    }

    /// Removes every element whose owner `gone` names, the chains on demand with the last one that jumps there, and the
    /// table with the last of all; returns them with the names of their maps.
    ///
    /// # Errors
    /// [`NetError`].
    pub fn remove(&self, socket: &mut Socket, gone: &dyn Fn(&str) -> bool) -> Result<Removed, NetError> {
        let removed = self.take_out(socket, gone)?;
        self.retire(socket, &removed)?;
        Ok(removed)
    }

    /// Removes the chains on demand that elements of `removed` jumped to, where those were the last.
    ///
    /// # Errors
    /// [`NetError`].
    pub fn retire(&self, socket: &mut Socket, removed: &Removed) -> Result<(), NetError> {
        retire::unused(socket, self, removed)
    }

    fn take_out(&self, socket: &mut Socket, gone: &dyn Fn(&str) -> bool) -> Result<Removed, NetError> {
        let (mut removed, mut tries) = (Removed::new(), 0);
        loop {
            tries += 1;
            let seen = generation(socket)?;
            let Some((found, left)) = self.divide(socket, gone)? else { return Ok(removed) };
            // Owners that go together see each other's elements; so each looks again after its own are gone.
            let last = left == 0 && tries < ATTEMPTS;
            // A table that has nothing is a leftover: it comes with its first element.
            if found.is_empty() && !last {
                return Ok(removed);
            }
            let mut batch = Batch::new(self.id());
            if last {
                batch.delete_table();
            } else {
                found.iter().for_each(|(map, element)| batch.delete_element(map, &element.key));
            }
            // Without the table's removal nothing depends on what others did meanwhile.
            match batch.commit(socket, last.then_some(seen)) {
                Err(error) if tries < ATTEMPTS && is_race(&error) => continue,
                Err(error) if !error.is_missing() => return Err(error),
                Ok(()) if !last => removed.extend(found),
                _no_table => {
                    removed.extend(found);
                    return Ok(removed);
                }
            }
        }
    }

    /// Elements whose owner `gone` names, and how many others there are; `None` without the table.
    fn divide(
        &self,
        socket: &mut Socket,
        gone: &dyn Fn(&str) -> bool,
    ) -> Result<Option<(Removed, usize)>, NetError> {
        let (mut going, mut left) = (Removed::new(), 0);
        let mut there = false;
        for map in self.all_maps() {
            // Earlier versions made tables with fewer maps.
            let Some(found) = elements(socket, self.id(), map.name)? else { continue };
            there = true;
            for element in found {
                if gone(&element.owner) {
                    going.push((map.name, element));
                } else {
                    left += 1;
                }
            }
        }
        Ok(there.then_some((going, left)))
    }

    /// TableFamily and name.
    pub fn id(&self) -> TableId<'static> {
        TableId { family: self.family, name: self.name }
    }

    /// Whether the chains that elements jump to are there; where there are none, the last fixed one.
    fn is_declared(&self, socket: &mut Socket, chains: &[OnDemand]) -> Result<bool, NetError> {
        let fixed = self.chains.last().filter(|_| chains.is_empty()).map(|(chain, _)| chain.name.as_str());
        for chain in fixed.into_iter().chain(chains.iter().map(|chain| chain.chain.as_str())) {
            if !chain_exists(socket, self.id(), chain)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Makes the fixed part, with the chains of `chains` that are not there.
    pub(super) fn declare(
        &self,
        socket: &mut Socket,
        batch: &mut Batch,
        chains: &[OnDemand],
    ) -> Result<(), NetError> {
        batch.add_table();
        for map in self.all_maps() {
            batch.add_map(map);
        }
        for (chain, rules) in &self.chains {
            batch.add_chain(chain, 0);
            // A chain without rules of its own collects those that come beside chains on demand.
            if !rules.is_empty() {
                batch.flush_chain(&chain.name);
            }
            rules.iter().for_each(|rule| batch.add_rule(&chain.name, rule));
        }
        for on_demand in chains {
            if chain_exists(socket, self.id(), &on_demand.chain)? {
                continue;
            }
            let chain = Chain { name: on_demand.chain.clone(), hook: None };
            batch.add_chain(&chain, NLM_F_EXCL);
            on_demand.rules.iter().for_each(|rule| batch.add_rule(&chain.name, rule));
            if let Some((chain, rule)) = &on_demand.beside {
                batch.add_rule(chain, rule);
            }
        }
        Ok(())
    }

    /// Its maps, and that of the notes about what is in them.
    fn all_maps(&self) -> impl Iterator<Item = &Map> {
        self.maps.iter().chain((!self.maps.is_empty()).then_some(&OWNED))
    }

    /// Keys that must be freed first: taken over, nobody's, or left by an earlier attempt of the same owner.
    pub(super) fn stale(
        &self,
        socket: &mut Socket,
        wanted: &[(&'static str, Element, Conflict)],
    ) -> Result<Vec<(&'static str, Vec<u8>)>, InsertError> {
        let mut stale = Vec::new();
        let keys: Vec<_> = wanted.iter().map(|(map, wanted, _)| (*map, wanted.key.clone())).collect();
        let found = elements_at(socket, self.id(), &keys)?;
        for (position, ((map, wanted, conflict), found)) in wanted.iter().zip(found).enumerate() {
            let Some(found) = found.map(|found| found.element) else { continue };
            let has_owner = !found.owner.is_empty() && found.owner != wanted.owner;
            if has_owner && *conflict == Conflict::Refuse {
                return Err(InsertError::Held { position, holder: found.owner });
            }
            stale.push((*map, found.key));
        }
        if let Some((_, first, _)) = wanted.first() {
            stale.extend(register::left_by(socket, self, &first.owner)?);
        }
        stale.sort_unstable();
        stale.dedup();
        Ok(stale)
    }
}

/// Whether another transaction came between reading and committing.
pub(super) fn is_race(error: &NetError) -> bool {
    const ERESTART: i32 = 85;
    error.is_missing() || error.errno().is_some_and(|errno| errno.raw_os_error() == ERESTART)
}

impl Element {
    /// An element that jumps to `chain`.
    pub fn jump(key: Vec<u8>, chain: &str, owner: &str) -> Self {
        Self { key, data: Target::Jump(chain.to_owned()), owner: owner.to_owned() }
    }
}
