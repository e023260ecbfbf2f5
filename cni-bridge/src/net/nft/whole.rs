//! Whether a table is whole, and making it so again: its rules with what they do, its chains with where they are
//! called, and one owner's elements. This lists all rules of the table, so it is nothing for ADD and DEL.

use super::batch::{Batch, Chain, Element, Rule};
use super::chains::{chains_at, is_dormant};
use super::query::{FoundRule, all_rules, element, generation};
use super::table::{ATTEMPTS, Conflict, InsertError, OnDemand, Table, is_race};
use crate::net::error::NetError;
use crate::net::socket::Socket;

impl Table {
    /// What is missing or different, in words; `None` when all is in place.
    ///
    /// The kernel does not say of a listing that others changed something while it wrote it: what was seen then is
    /// looked at again.
    ///
    /// # Errors
    /// [`NetError`].
    pub fn damage(
        &self,
        socket: &mut Socket,
        wanted: &[(&'static str, Element)],
        chains: &[OnDemand],
    ) -> Result<Option<String>, NetError> {
        let mut tries = 0;
        loop {
            tries += 1;
            let seen = generation(socket)?;
            let damage = self.damage_seen(socket, wanted, chains)?;
            if damage.is_none() || tries == ATTEMPTS || generation(socket)? == seen {
                return Ok(damage);
            }
        }
    }

    fn damage_seen(
        &self,
        socket: &mut Socket,
        wanted: &[(&'static str, Element)],
        chains: &[OnDemand],
    ) -> Result<Option<String>, NetError> {
        let found = all_rules(socket, self.id())?;
        let wanted_chains = self.with(chains);
        for (chain, rules) in &wanted_chains {
            if let Some(damage) = damage_of(&chain.name, rules, &found) {
                return Ok(Some(damage));
            }
        }
        for (chain, rule) in chains.iter().filter_map(|chain| chain.beside.as_ref()) {
            if let Some(damage) = damage_beside(chain, rule, &found) {
                return Ok(Some(damage));
            }
        }
        if let Some(chain) = self.called_otherwise(socket, &wanted_chains)?.first() {
            let how = "its type, hook, priority or policy was altered";
            return Ok(Some(format!("chain {} is not called as it must be: {how}", chain.name)));
        }
        if is_dormant(socket, self.id())? {
            return Ok(Some(format!("table {} is dormant", self.name)));
        }
        self.damage_of_elements(socket, wanted)
    }

    fn damage_of_elements(
        &self,
        socket: &mut Socket,
        wanted: &[(&'static str, Element)],
    ) -> Result<Option<String>, NetError> {
        for (map, expected) in wanted {
            match element(socket, self.id(), map, &expected.key)? {
                None => return Ok(Some(format!("an element of map {map} is missing"))),
                Some(found) if found.owner != expected.owner => {
                    return Ok(Some(format!("an element of map {map} belongs to {:?}", found.owner)));
                }
                Some(found) if found != *expected => {
                    return Ok(Some(format!("an element of map {map} was altered")));
                }
                Some(_) => {}
            }
        }
        Ok(None)
    }

    /// Makes fixed part, chains on demand and elements as they should be, whatever of them is there. One transaction.
    ///
    /// # Errors
    /// As [`Table::insert`].
    pub fn mend(
        &self,
        socket: &mut Socket,
        wanted: &[(&'static str, Element, Conflict)],
        chains: &[OnDemand],
    ) -> Result<(), InsertError> {
        if is_dormant(socket, self.id())? {
            // Alone: the kernel does not wake a table and change its chains at once.
            let mut awake = Batch::new(self.id());
            awake.add_table();
            awake.commit(socket, None)?;
        }
        let mut tries = 0;
        loop {
            tries += 1;
            let seen = generation(socket)?;
            let mut batch = Batch::new(self.id());
            self.mend_chains(socket, &mut batch, chains)?;
            for (map, key) in self.stale(socket, wanted)? {
                batch.delete_element(map, &key);
            }
            self.add(&mut batch, wanted);
            match batch.commit(socket, Some(seen)) {
                Err(error) if tries < ATTEMPTS && is_race(&error) => continue,
                outcome => return Ok(outcome?),
            }
        }
    }

    fn mend_chains(
        &self,
        socket: &mut Socket,
        batch: &mut Batch,
        chains: &[OnDemand],
    ) -> Result<(), NetError> {
        let mut known = all_rules(socket, self.id())?;
        let wanted_chains = self.with(chains);
        // Where a chain is called cannot be changed.
        for chain in self.called_otherwise(socket, &wanted_chains)? {
            batch.flush_chain(&chain.name);
            batch.delete_chain(&chain.name);
            known.retain(|rule| rule.chain != chain.name);
        }
        self.declare(socket, batch, &[])?;
        for on_demand in chains {
            batch.add_chain(&on_demand.chain(), 0);
            batch.flush_chain(&on_demand.chain);
            on_demand.rules.iter().for_each(|rule| batch.add_rule(&on_demand.chain, rule));
            let Some((chain, rule)) = &on_demand.beside else { continue };
            let (whole, altered): (Vec<_>, Vec<_>) = known
                .iter()
                .filter(|found| is_for(found, chain, rule))
                .partition(|found| found.does(&rule.steps));
            altered.iter().for_each(|found| batch.delete_rule(chain, found.handle));
            if whole.is_empty() {
                batch.add_rule(chain, rule);
            }
        }
        Ok(())
    }

    /// Every chain that is wanted, with the rules that are its own.
    fn with<'a>(&'a self, chains: &'a [OnDemand]) -> Vec<(Chain, &'a [Rule])> {
        let fixed = self.chains.iter().map(|(chain, rules)| (chain.clone(), &rules[..]));
        fixed.chain(chains.iter().map(|chain| (chain.chain(), &chain.rules[..]))).collect()
    }

    /// Chains that are there, and that the kernel calls where it should not, or not where it should.
    fn called_otherwise<'a>(
        &self,
        socket: &mut Socket,
        wanted: &'a [(Chain, &[Rule])],
    ) -> Result<Vec<&'a Chain>, NetError> {
        let wanted: Vec<&Chain> = wanted.iter().map(|(chain, _)| chain).collect();
        let found = chains_at(socket, self.id(), &wanted)?;
        let otherwise = wanted
            .into_iter()
            .zip(found)
            .filter(|(wanted, found)| found.as_ref().is_some_and(|found| !found.is_called_as(wanted)));
        Ok(otherwise.map(|(chain, _)| chain).collect())
    }
}

impl OnDemand {
    /// The chain; nothing but rules and elements calls it.
    fn chain(&self) -> Chain {
        Chain { name: self.chain.clone(), hook: None }
    }
}

/// What is wrong with the rules of a chain that has `wanted` and no others.
fn damage_of(chain: &str, wanted: &[Rule], found: &[FoundRule]) -> Option<String> {
    let damage = wanted.iter().find_map(|rule| damage_beside(chain, rule, found));
    // A chain without rules of its own collects those that come beside chains on demand.
    if damage.is_some() || wanted.is_empty() {
        return damage;
    }
    let found = found.iter().filter(|rule| rule.chain == chain).map(|rule| rule.comment.as_str());
    let as_wanted = found.eq(wanted.iter().map(|rule| rule.comment.as_str()));
    (!as_wanted).then(|| format!("chain {chain} has other rules than its own, or in another order"))
}

/// What is wrong with a rule that has others beside it.
fn damage_beside(chain: &str, rule: &Rule, found: &[FoundRule]) -> Option<String> {
    let own: Vec<_> = found.iter().filter(|found| is_for(found, chain, rule)).collect();
    let how = match own.iter().all(|found| found.does(&rule.steps)) {
        _ if own.is_empty() => "is missing",
        false => "was altered",
        true => return None,
    };
    Some(format!("rule {:?} of chain {chain} {how}", rule.comment))
}

fn is_for(found: &FoundRule, chain: &str, rule: &Rule) -> bool {
    found.chain == chain && found.comment == rule.comment
}
