//! `subnet: "auto"`: a subnet of private addresses that meets nothing this host knows, chosen once and then kept in
//! the file `.subnet` of the network's store.
//!
//! Never met: subnets on links, interfaces' addresses, resolvers, other CNI networks, overlay networks, and what
//! `ipam.avoid` names. Met only when there is no other: subnets that the host reaches through routers.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::path::Path;

use ipnet::{IpNet, Ipv4Net};
use proto::cni::{CniError, ErrorCode, Request};
use rustix::fs::{FlockOperation, flock};
use serde_json::Value;

use super::conf::data_dir;
use crate::net::socket::Socket;
use crate::net::{addr, route};

/// Where the choice is kept.
const CHOICE: &str = ".subnet";
/// Where runtimes keep network configurations, unless `ipam.confDir` says otherwise.
const CONF_DIR: &str = "/etc/cni/net.d";
const RESOLVERS: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
/// Where agents of overlay networks say what their network is.
const OVERLAYS: [&str; 2] = ["/run/flannel/subnet.env", "/run/berth/subnet.env"];
/// The most that is read of a file, in bytes.
const LIMIT: u64 = 1 << 20;

/// What is around.
#[derive(Debug, Default)]
struct Surroundings {
    never: Vec<IpNet>,
    rather_not: Vec<IpNet>,
}

/// The network's subnet, chosen now if it was not before.
///
/// # Errors
/// [`ErrorCode::INVALID_NETWORK_CONFIG`] when no subnet is free; [`ErrorCode::IO_FAILURE`].
pub fn subnet(request: &Request) -> Result<IpNet, CniError> {
    let base = data_dir(request)?;
    let dir = base.join(request.conf.name.as_str());
    let failed = |error: io::Error| {
        CniError::caused(ErrorCode::IO_FAILURE, format!("ipam.subnet: choice in {}", dir.display()), &error)
    };
    if let Some(chosen) = chosen(&dir) {
        return Ok(chosen);
    }
    std::fs::create_dir_all(&dir).map_err(failed)?;
    let lock = File::options().create(true).truncate(false).write(true).open(base.join(".subnets.lock"));
    let lock = lock.map_err(failed)?;
    flock(&lock, FlockOperation::LockExclusive).map_err(|errno| failed(errno.into()))?;
    // Another ADD may have been faster.
    if let Some(chosen) = chosen(&dir) {
        return Ok(chosen);
    }
    let around = look_around(request, &base)?;
    let found = choose(&around);
    let found = found.ok_or_else(|| CniError::config("ipam.subnet", "auto: no private subnet is free"))?;
    keep(&dir, found).map_err(failed)?;
    Ok(found)
}

fn chosen(dir: &Path) -> Option<IpNet> {
    std::fs::read_to_string(dir.join(CHOICE)).ok()?.trim().parse().ok()
}

/// On the disk before anybody gets an address of it.
fn keep(dir: &Path, subnet: IpNet) -> io::Result<()> {
    let draft = dir.join(".subnet.draft");
    let mut file = File::create(&draft)?;
    file.write_all(format!("{subnet}\n").as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&draft, dir.join(CHOICE))?;
    File::open(dir)?.sync_all()
}

/// The first candidate that meets nothing, or else the first that meets only what is behind routers.
fn choose(around: &Surroundings) -> Option<IpNet> {
    let free = |subnet: &IpNet, taken: &[IpNet]| !taken.iter().any(|other| meet(subnet, other));
    let possible = || candidates().filter(|subnet| free(subnet, &around.never));
    possible().find(|subnet| free(subnet, &around.rather_not)).or_else(|| possible().next())
}

/// 172.17.0.0/16 to 172.31.0.0/16, then 192.168.0.0/16 in parts of /20, then 10.0.0.0/8 in parts of /16.
fn candidates() -> impl Iterator<Item = IpNet> {
    let first = (17..=31).map(|second| Ipv4Net::new_assert([172, second, 0, 0].into(), 16));
    let second = (0..16).map(|part| Ipv4Net::new_assert([192, 168, part * 16, 0].into(), 20));
    let third = (0..=255).map(|second| Ipv4Net::new_assert([10, second, 0, 0].into(), 16));
    first.chain(second).chain(third).map(IpNet::V4)
}

fn meet(one: &IpNet, other: &IpNet) -> bool {
    one.contains(&other.network()) || other.contains(&one.network())
}

fn look_around(request: &Request, base: &Path) -> Result<Surroundings, CniError> {
    let ipam = request.conf.top().object("ipam")?.ok_or_else(|| CniError::config("ipam", "missing"))?;
    let mut around = Surroundings::default();
    for (index, text) in ipam.strings("avoid")?.into_iter().enumerate() {
        let path = format!("{}[{index}]", ipam.path("avoid"));
        let subnet: IpNet =
            text.parse().map_err(|_| CniError::config(&path, format!("{text:?} is not a subnet")))?;
        around.never.push(subnet.trunc());
    }
    let mut socket = Socket::route()?;
    around.never.extend(addr::all(&mut socket)?.into_iter().map(|address| address.trunc()));
    for destination in route::destinations(&mut socket, IpAddr::from([0; 4]))? {
        // Halves of everything are default routes of tunnels.
        if destination.on_link && destination.subnet.prefix_len() > 1 {
            around.never.push(destination.subnet);
        } else if destination.subnet.prefix_len() > 8 {
            around.rather_not.push(destination.subnet);
        }
    }
    around.never.extend(RESOLVERS.iter().flat_map(|file| resolvers(Path::new(file))));
    around.never.extend(OVERLAYS.iter().flat_map(|file| overlays(Path::new(file))));
    let conf_dir = ipam.string("confDir")?.filter(|dir| !dir.is_empty()).unwrap_or(CONF_DIR);
    around.never.extend(other_networks(Path::new(conf_dir), request.conf.name.as_str()));
    around.never.extend(entries(base).iter().filter_map(|dir| chosen(dir)));
    Ok(around)
}

fn read(path: &Path) -> String {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(LIMIT).read_to_end(&mut bytes));
    read.map(|_| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

fn resolvers(file: &Path) -> Vec<IpNet> {
    let text = read(file);
    let servers = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    servers.filter_map(|server| server.trim().parse::<IpAddr>().ok()).map(IpNet::from).collect()
}

fn overlays(file: &Path) -> Vec<IpNet> {
    let text = read(file);
    let values = text.lines().filter_map(|line| line.split_once('=')).map(|(_, value)| value);
    values.flat_map(|value| value.split(',')).filter_map(|value| value.trim().parse::<IpNet>().ok()).collect()
}

/// Every subnet in the configurations of other networks, whatever key it stands at.
fn other_networks(dir: &Path, own: &str) -> Vec<IpNet> {
    let mut found = Vec::new();
    for file in entries(dir) {
        let known = file
            .extension()
            .is_some_and(|name| ["conf", "conflist", "json"].iter().any(|known| name == *known));
        let Some(value) = known.then(|| serde_json::from_str::<Value>(&read(&file)).ok()).flatten() else {
            continue;
        };
        if value.get("name").and_then(Value::as_str) != Some(own) {
            subnets_in(&value, &mut found);
        }
    }
    found
}

fn subnets_in(value: &Value, found: &mut Vec<IpNet>) {
    match value {
        // Default routes are no networks.
        Value::String(text) => found.extend(text.parse::<IpNet>().ok().filter(|net| net.prefix_len() > 0)),
        Value::Array(list) => list.iter().for_each(|value| subnets_in(value, found)),
        Value::Object(map) => map.values().for_each(|value| subnets_in(value, found)),
        _ => {}
    }
}

fn entries(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_first_that_meets_nothing() {
        let check = |never: &[&str], rather_not: &[&str], expect: Option<&str>| {
            let around = Surroundings { never: nets(never), rather_not: nets(rather_not) };
            assert_eq!(choose(&around), expect.map(|text| text.parse().unwrap()), "{never:?} {rather_not:?}");
        };
        check(&[], &[], Some("172.17.0.0/16"));
        check(&["172.17.5.0/24", "172.18.0.1/32", "fd00::/8"], &["172.19.1.0/24"], Some("172.20.0.0/16"));
        check(&["172.16.0.0/12"], &[], Some("192.168.0.0/20"));
        check(&["172.16.0.0/12", "192.168.0.0/16"], &["10.0.0.0/9"], Some("10.128.0.0/16"));
        // All behind routers: then one of those.
        let private = ["172.16.0.0/12", "192.168.0.0/16", "10.0.0.0/8"];
        check(&["172.17.0.0/16"], &private, Some("172.18.0.0/16"));
        check(&private, &[], None);
    }

    #[test]
    fn files_name_what_to_avoid() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("resolv.conf", "search a\nnameserver 172.17.0.53\nnameserver fd00::53\nnameserver x\n");
        assert_eq!(resolvers(&dir.path().join("resolv.conf")), nets(&["172.17.0.53/32", "fd00::53/128"]));
        write("subnet.env", "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.1.1/24\nFLANNEL_MTU=1450\n");
        assert_eq!(overlays(&dir.path().join("subnet.env")), nets(&["10.5.0.0/16", "10.5.1.1/24"]));
        write(
            "10-a.conflist",
            r#"{"name":"a","plugins":[{"ipam":{"ranges":[[{"subnet":"172.18.0.0/16"}]],"routes":[{"dst":"0.0.0.0/0"}]}}]}"#,
        );
        write("20-own.conf", r#"{"name":"own","ipam":{"subnet":"172.19.0.0/16"}}"#);
        write("30-c.conf", "not JSON");
        write("40-d.bak", r#"{"subnet":"172.20.0.0/16"}"#);
        assert_eq!(other_networks(dir.path(), "own"), nets(&["172.18.0.0/16"]));
        assert_eq!(other_networks(Path::new("/absent"), "own"), []);
    }
}
