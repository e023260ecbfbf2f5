//! Letting pods' packets through a host whose `iptables` drops what it forwards.
//!
//! What one table of nf_tables drops, no accepting rule of another table brings back: so where the table `filter` of
//! `iptables` (or `ip6tables`) has a chain FORWARD, as Docker and Kubernetes make it, rules go there, in the chains and
//! the form of the reference plugin: FORWARD jumps to CNI-FORWARD, that to the administrators' chain, and then two
//! rules accept each address. `iptables -S` shows them with their owner as comment. The legacy `iptables` keeps
//! its rules elsewhere and is not reached.

use std::net::IpAddr;

use crate::net::NetError;
use crate::net::nft::{
    self, Batch, Chain, Expression, FoundRule, HeaderField, Rule, TableFamily, TableId, Verdict,
};
use crate::net::socket::Socket;
use crate::owner::Owner;

const OURS: &str = "CNI-FORWARD";
const HOOK: &str = "FORWARD";
const IP4: TableId<'static> = TableId { family: TableFamily::Ip4, name: "filter" };
const IP6: TableId<'static> = TableId { family: TableFamily::Ip6, name: "filter" };

/// How often a change is tried again when others change nf_tables meanwhile.
const ATTEMPTS: usize = 16;

/// Accepts what goes from and to an owner's addresses.
///
/// # Errors
/// [`NetError`].
pub fn add(
    socket: &mut Socket,
    owner: &Owner,
    addresses: &[IpAddr],
    admin_chain: &str,
) -> Result<(), NetError> {
    for (table, own) in by_table(addresses) {
        if own.is_empty() || !nft::chain_exists(socket, table, HOOK)? {
            continue;
        }
        let mut tries = 0;
        while let Err(error) = add_to(socket, table, (owner, &own), admin_chain) {
            tries += 1;
            if tries == ATTEMPTS || !is_race(&error) {
                return Err(error);
            }
        }
    }
    Ok(())
}

fn add_to(
    socket: &mut Socket,
    table: TableId<'static>,
    (owner, addresses): (&Owner, &[IpAddr]),
    admin_chain: &str,
) -> Result<(), NetError> {
    let seen = nft::generation(socket)?;
    let hooked = nft::rules_of(socket, table, HOOK)?.iter().any(|rule| rule.does(&[to_chain(OURS)]));
    let own = nft::rules_of(socket, table, OURS)?;
    let administered = own.iter().any(|rule| rule.does(&[to_chain(admin_chain)]));
    let mut batch = Batch::new(table);
    // With both jumps there, so are the chains: if they are gone meanwhile, this is refused and tried again.
    if !hooked || !administered {
        for name in [OURS, admin_chain] {
            batch.add_chain(&Chain { name: name.to_owned(), hook: None }, 0);
        }
    }
    let jump = |comment: &str, chain: &str| Rule {
        comment: comment.to_owned(),
        steps: vec![Expression::Count, to_chain(chain)],
    };
    if !hooked {
        batch.insert_rule(HOOK, &jump("CNI firewall plugin rules", OURS));
    }
    if !administered {
        batch.insert_rule(OURS, &jump("CNI firewall plugin admin overrides", admin_chain));
    }
    own.iter()
        .filter(|rule| rule.comment == owner.tag())
        .for_each(|rule| batch.delete_rule(OURS, rule.handle));
    for address in addresses {
        accepting(owner, *address).iter().for_each(|rule| batch.add_rule(OURS, rule));
    }
    // Two who find no jump must not both make one.
    batch.commit(socket, (!hooked || !administered).then_some(seen))
}

fn to_chain(name: &str) -> Expression {
    Expression::Verdict(Verdict::Jump(name.to_owned()))
}

/// To the address only what belongs to a known connection, from it everything.
fn accepting(owner: &Owner, address: IpAddr) -> [Rule; 2] {
    let (to, from) = match address {
        IpAddr::V4(_) => (HeaderField::Destination4, HeaderField::Source4),
        IpAddr::V6(_) => (HeaderField::Destination6, HeaderField::Source6),
    };
    let rule = |field: HeaderField, more: Option<Expression>| {
        let mut steps = vec![Expression::Payload(field, 0), Expression::Equal(0, octets(address))];
        steps.extend(more);
        steps.extend([Expression::Count, Expression::Verdict(Verdict::Accept)]);
        Rule { comment: owner.tag().to_owned(), steps }
    };
    [rule(to, Some(Expression::KnownConnections)), rule(from, None)]
}

/// Removes the rules that `gone` picks, by comment or by what they are for, and the chains with the last ones.
///
/// # Errors
/// [`NetError`].
pub fn remove(socket: &mut Socket, gone: &dyn Fn(&FoundRule) -> bool) -> Result<(), NetError> {
    for table in [IP4, IP6] {
        let mut tries = 0;
        while let Err(error) = remove_from(socket, table, gone) {
            tries += 1;
            if tries == ATTEMPTS || !is_race(&error) {
                return Err(error);
            }
        }
    }
    Ok(())
}

fn remove_from(
    socket: &mut Socket,
    table: TableId<'static>,
    gone: &dyn Fn(&FoundRule) -> bool,
) -> Result<(), NetError> {
    let seen = nft::generation(socket)?;
    let own = nft::rules_of(socket, table, OURS)?;
    let (going, staying): (Vec<_>, Vec<_>) = own.into_iter().partition(gone);
    if going.is_empty() {
        return Ok(());
    }
    if let Some(batch) = everything(socket, table, &staying)? {
        match batch.commit(socket, Some(seen)) {
            // Somebody else jumps to one of the chains: they stay.
            Err(error @ NetError::Refused { .. }) if !is_race(&error) => {}
            outcome => return outcome,
        }
    }
    let mut batch = Batch::new(table);
    going.iter().for_each(|rule| batch.delete_rule(OURS, rule.handle));
    batch.commit(socket, None)
}

/// The removal of the chains with all that is in them; `None` where more than empty chains would be lost with the
/// rules that are to go.
fn everything(
    socket: &mut Socket,
    table: TableId<'static>,
    staying: &[FoundRule],
) -> Result<Option<Batch>, NetError> {
    let admin: Vec<String> = staying.iter().filter_map(FoundRule::jumps_to).collect();
    let mut empty = staying.len() == admin.len();
    for chain in &admin {
        empty &= nft::rules_of(socket, table, chain)?.is_empty();
    }
    if !empty {
        return Ok(None);
    }
    let mut batch = Batch::new(table);
    let hooked = nft::rules_of(socket, table, HOOK)?;
    let jumps = hooked.iter().filter(|rule| rule.jumps_to().as_deref() == Some(OURS));
    jumps.for_each(|rule| batch.delete_rule(HOOK, rule.handle));
    batch.flush_chain(OURS);
    batch.delete_chain(OURS);
    admin.iter().for_each(|chain| batch.delete_chain(chain));
    Ok(Some(batch))
}

/// Where the legacy `iptables` filters on this host, in words: what it drops in FORWARD no rule here brings back.
pub fn out_of_reach() -> Option<String> {
    for (program, names) in [("iptables", "ip_tables_names"), ("ip6tables", "ip6_tables_names")] {
        let used = std::fs::read_to_string(format!("/proc/thread-self/net/{names}")).unwrap_or_default();
        if used.lines().any(|table| table == "filter") {
            return Some(format!(
                "the legacy {program} has a table filter on this host, which is not reached from here: its chain \
                 {HOOK} must accept what pods send and receive"
            ));
        }
    }
    None
}

/// What is missing, in words; `None` where no `iptables` needs it.
///
/// # Errors
/// [`NetError`].
pub fn damage(socket: &mut Socket, owner: &Owner, addresses: &[IpAddr]) -> Result<Option<String>, NetError> {
    for (table, own) in by_table(addresses) {
        if own.is_empty() || !nft::chain_exists(socket, table, HOOK)? {
            continue;
        }
        let hooked = nft::rules_of(socket, table, HOOK)?;
        if !hooked.iter().any(|rule| rule.does(&[to_chain(OURS)])) {
            return Ok(Some(format!("chain {HOOK} does not jump to {OURS}")));
        }
        let found = nft::rules_of(socket, table, OURS)?;
        for address in own {
            if let Some(how) = damage_of(&found, owner, address) {
                return Ok(Some(format!("a rule of chain {OURS} for {address} {how}")));
            }
        }
    }
    Ok(None)
}

fn damage_of(found: &[FoundRule], owner: &Owner, address: IpAddr) -> Option<&'static str> {
    let of = |tag: &str| -> Vec<&FoundRule> {
        let is = |rule: &&FoundRule| rule.comment == tag && rule.compares(&octets(address));
        found.iter().filter(is).collect()
    };
    let own = of(owner.tag());
    match accepting(owner, address).iter().all(|rule| own.iter().any(|found| found.does(&rule.steps))) {
        true => None,
        // What the reference plugin made has no owner, and serves as well; it may have left some of it behind.
        false if of("").len() >= 2 => None,
        false if own.len() >= 2 => Some("was altered"),
        false => Some("is missing"),
    }
}

fn by_table(addresses: &[IpAddr]) -> [(TableId<'static>, Vec<IpAddr>); 2] {
    let of = |v4: bool| addresses.iter().copied().filter(|address| address.is_ipv4() == v4).collect();
    [(IP4, of(true)), (IP6, of(false))]
}

/// The address in network order.
pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// Whether another transaction came between reading and committing.
fn is_race(error: &NetError) -> bool {
    const ERESTART: i32 = 85;
    error.is_missing() || error.errno().is_some_and(|errno| errno.raw_os_error() == ERESTART)
}
