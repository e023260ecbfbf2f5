//! Published ports in their tables: what belongs there, put in, verified, taken out.

use std::collections::BTreeMap;
use std::path::Path;

use ipnet::IpNet;
use proto::cni::{CniError, ErrorCode};

use super::conf::{HostAddress, Mapping, PortMapConf};
use super::{conditions, flows, rules};
use crate::net::NetError;
use crate::net::nft::{self, Element, OnDemand, Place, Removed, Table, Tables};
use crate::net::socket::Socket;
use crate::owner::Owner;
use crate::plugin::claims::{self, ClaimError, Wanted};

/// What one attachment has in the tables.
pub struct Publication<'a> {
    mappings: &'a [Mapping],
    owner: &'a Owner,
    parts: [Part; 2],
}

/// What it has in one table.
struct Part {
    table: Table,
    /// Elements for ports, with the mapping that each comes from.
    ports: Vec<(&'static str, Element, usize)>,
    /// Elements for the sources of packets on the way to the pod.
    sources: Vec<(&'static str, Element)>,
    chains: Vec<OnDemand>,
}

impl<'a> Publication<'a> {
    /// What `conf` asks for, for a pod with `addresses`.
    pub fn new(conf: &'a PortMapConf, owner: &'a Owner, addresses: &[IpNet]) -> Self {
        let published = rules::published(owner, &conf.mappings, addresses);
        let (conditional, always): (Vec<_>, Vec<_>) =
            published.into_iter().partition(|(map, _, _)| !conf.conditions.of_map(map).is_empty());
        let (sources, chains) = rules::sources(owner, conf.snat, addresses);
        let always = Part { table: rules::table(), ports: always, sources, chains };
        let mut when =
            Part { table: conditions::table(), ports: Vec::new(), sources: Vec::new(), chains: Vec::new() };
        for (map, element, index) in conditional {
            let chain = conditions::chain(conf.conditions.of_map(map), map);
            let key = rules::port_key(&conf.mappings[index]);
            let leading = (if map.ends_with('4') { "when4" } else { "when6" }, key);
            if !when.ports.iter().any(|(map, element, _)| (*map, &element.key) == (leading.0, &leading.1)) {
                when.ports.push((leading.0, Element::jump(leading.1, &chain.chain, owner.tag()), index));
            }
            when.ports.push((map, element, index));
            if !when.chains.contains(&chain) {
                when.chains.push(chain);
            }
        }
        Self { mappings: &conf.mappings, owner, parts: [when, always] }
    }

    /// Puts all of it in place; `base` is where locks are. What was put in before a refusal is DEL's to remove, or the
    /// caller's. A container may publish a port by several networks: the first one serves it.
    ///
    /// # Errors
    /// [`ErrorCode::PLUGIN`] where somebody else has a port, naming the holder.
    pub fn place(&self, socket: &mut Socket, base: &Path, place: Place) -> Result<(), CniError> {
        self.refuse_overlap(socket)?;
        for part in self.parts.iter().filter(|part| !part.is_empty()) {
            self.place_part(socket, base, part, place)?;
        }
        Ok(())
    }

    fn place_part(
        &self,
        socket: &mut Socket,
        base: &Path,
        part: &Part,
        place: Place,
    ) -> Result<(), CniError> {
        let mut ports: Vec<_> = part.ports.iter().collect();
        loop {
            let alone: Vec<_> = ports.iter().map(|(map, element, _)| (*map, element.clone())).collect();
            if alone.is_empty() && part.sources.is_empty() {
                return Ok(());
            }
            let wanted = Wanted { alone: &alone, shared: &part.sources, chains: &part.chains };
            match claims::place(socket, base, &part.table, wanted, place) {
                Err(ClaimError::Held { position, holder })
                    if position < ports.len() && self.owner.is_sibling(&holder) =>
                {
                    ports.remove(position);
                }
                Err(ClaimError::Held { position, holder }) => {
                    let mapping = ports.get(position).map(|(_, _, index)| &self.mappings[*index]);
                    return Err(held(mapping, &holder));
                }
                other => return Ok(other?),
            }
        }
    }

    /// What is missing, in words.
    ///
    /// # Errors
    /// [`NetError`].
    pub fn damage(&self, socket: &mut Socket) -> Result<Option<String>, NetError> {
        for part in self.parts.iter().filter(|part| !part.is_empty()) {
            let ports = part.ports.iter().map(|(map, element, _)| (*map, element.clone()));
            let sources = claims::expected(socket, &part.table, &part.sources)?;
            let mut wanted: Vec<_> = ports.chain(sources).collect();
            let all = wanted.len();
            if let Some(damage) = part.table.damage(socket, &wanted, &part.chains)? {
                let mut kept = Vec::new();
                for (map, element) in wanted {
                    let found = nft::element(socket, part.table.id(), map, &element.key)?;
                    if !found.is_some_and(|found| self.owner.is_sibling(&found.owner)) {
                        kept.push((map, element));
                    }
                }
                wanted = kept;
                let otherwise = wanted.len() < all;
                match if otherwise { part.table.damage(socket, &wanted, &part.chains)? } else { Some(damage) }
                {
                    None => {}
                    damage => return Ok(damage),
                }
            }
        }
        Ok(None)
    }

    /// A port of all addresses and the same port of one address exclude each other, as they do for sockets; so do a
    /// port under conditions and one without.
    fn refuse_overlap(&self, socket: &mut Socket) -> Result<(), CniError> {
        let [when, always] = &self.parts;
        let (main, other) = (always.table.id(), when.table.id());
        // Holders of ports of single addresses, by protocol and port; read when the first port of all addresses comes.
        let mut singles: BTreeMap<&str, BTreeMap<Vec<u8>, String>> = BTreeMap::new();
        let conditions_known = nft::chain_exists(socket, other, "publish")?;
        for (map, _, index) in when.ports.iter().chain(&always.ports) {
            let mapping = &self.mappings[*index];
            let key = rules::port_key(mapping);
            let [any, one, conditional] = match map.ends_with('4') {
                true => ["ports4", "addrs4", "when4"],
                false => ["ports6", "addrs6", "when6"],
            };
            let mut holders = Vec::new();
            if conditions_known {
                holders.push(nft::element(socket, other, conditional, &key)?.map(|found| found.owner));
            }
            if !matches!(mapping.host, HostAddress::One(_)) {
                if !singles.contains_key(one) {
                    singles.insert(one, single_holders(socket, self.owner, one)?);
                }
                holders.push(singles.get(one).and_then(|holders| holders.get(&key)).cloned());
            }
            if matches!(mapping.host, HostAddress::One(_)) || !when.is_empty() {
                holders.push(nft::element(socket, main, any, &key)?.map(|found| found.owner));
            }
            // What has no owner is nobody's.
            let other = |holder: &String| {
                !holder.is_empty() && holder != self.owner.tag() && !self.owner.is_sibling(holder)
            };
            if let Some(holder) = holders.into_iter().flatten().find(other) {
                return Err(held(Some(mapping), &holder));
            }
        }
        Ok(())
    }
}

impl Part {
    fn is_empty(&self) -> bool {
        self.ports.is_empty() && self.sources.is_empty()
    }
}

/// Removes everything whose owner `gone` names, and has flows that led there forgotten; `base` is where locks are.
///
/// # Errors
/// [`NetError`].
pub fn remove(socket: &mut Socket, base: &Path, gone: &dyn Fn(&str) -> bool) -> Result<(), NetError> {
    let mut removed = conditions::table().remove(socket, gone)?;
    removed.extend(claims::remove(socket, base, &rules::table(), gone)?);
    flows::after_removal(socket, &removed)
}

/// Removes everything of one owner, as far as there are `tables` for it; the flows that led there go on. Returns what
/// was removed.
///
/// # Errors
/// [`NetError`].
pub fn withdraw_of(
    socket: &mut Socket,
    base: &Path,
    tables: &Tables,
    owner: &Owner,
) -> Result<Removed, NetError> {
    let mut removed = conditions::table().remove_of(socket, tables, owner.tag())?;
    removed.extend(claims::remove_of(socket, base, (tables, &rules::table()), owner)?);
    Ok(removed)
}

/// Who else holds a port of a single address.
fn single_holders(
    socket: &mut Socket,
    owner: &Owner,
    map: &str,
) -> Result<BTreeMap<Vec<u8>, String>, CniError> {
    let all = nft::elements(socket, rules::table().id(), map)?.unwrap_or_default();
    let others = all.into_iter().filter(|found| found.owner != owner.tag());
    let entry = |found: Element| Some((found.key.last_chunk::<8>()?.to_vec(), found.owner));
    Ok(others.filter_map(entry).collect())
}

fn held(mapping: Option<&Mapping>, holder: &str) -> CniError {
    let what = mapping.map_or_else(|| "a host port".to_owned(), Mapping::to_string);
    CniError::new(ErrorCode::PLUGIN, format!("{what} is already published for {holder}"))
}
