//! host-local: addresses out of ranges of this host, reserved in files.

use std::net::IpAddr;
use std::path::Path;

use proto::cni::result::{Dns, IpConfig};
use proto::cni::{Attachment, CniError, CniResult, ErrorCode, Plugin, Request};

use super::conf::HostLocalConf;
use super::range::RangeSet;
use super::store::{Reservation, Store};

/// The plugin.
#[derive(Debug, Clone, Copy)]
pub struct HostLocal;

impl HostLocal {
    /// Reserves one address of each range set; what the attachment holds already, it keeps.
    ///
    /// # Errors
    /// [`ErrorCode::TRY_AGAIN_LATER`] when a set is exhausted; [`ErrorCode::INVALID_NETWORK_CONFIG`] when a
    /// requested address is taken or in no range.
    pub fn allocate(&self, request: &Request, attachment: &Attachment) -> Result<CniResult, CniError> {
        request.args.expect_only(&["IP", "MAC", "GATEWAY"])?;
        let conf = HostLocalConf::parse(request)?;
        let dns = conf.resolv_conf.as_deref().map(read_resolv_conf).transpose()?.unwrap_or_default();
        let store = Store::open(&conf.data_dir, request.conf.name.as_str())?;
        let held = store.reservations()?;
        let choices = choose(&conf, attachment, &held, &|set| Ok(store.last(set)?))?;
        let fresh = |choice: &&Choice| !choice.held;
        for choice in choices.iter().filter(fresh) {
            if let Err(error) = store.reserve(choice.address, attachment, choice.set) {
                // All or nothing; what cannot be undone now, DEL will.
                let _ = choices.iter().filter(fresh).try_for_each(|choice| store.release(choice.address));
                return Err(error.into());
            }
        }
        let ips = choices.into_iter().map(|choice| choice.ip).collect();
        Ok(CniResult { ips, routes: conf.routes, dns, ..CniResult::default() })
    }

    /// Verifies that the attachment still holds what `prevResult` says it got.
    ///
    /// # Errors
    /// [`ErrorCode::PLUGIN`] naming the address that is not its own.
    pub fn verify(&self, request: &Request, attachment: &Attachment) -> Result<(), CniError> {
        let conf = HostLocalConf::parse(request)?;
        let store = Store::open_existing(&conf.data_dir, request.conf.name.as_str())?;
        let held = store.map(|store| store.reservations()).transpose()?.unwrap_or_default();
        let own: Vec<IpAddr> =
            held.iter().filter(|found| found.is_of(attachment)).map(|found| found.address).collect();
        let lost = |what: String| Err(CniError::new(ErrorCode::PLUGIN, what));
        if own.is_empty() {
            return lost(format!("host-local: no address is reserved for {}", attachment.container_id));
        }
        let expected = request.conf.prev_result()?.map(|result| result.ips).unwrap_or_default();
        let ours = |address: IpAddr| conf.sets.iter().any(|set| set.range_of(address).is_some());
        match expected
            .iter()
            .map(|ip| ip.address.addr())
            .find(|address| ours(*address) && !own.contains(address))
        {
            Some(address) => {
                lost(format!("host-local: {address} is not reserved for {}", attachment.container_id))
            }
            None => Ok(()),
        }
    }

    fn release(&self, request: &Request, gone: &dyn Fn(&Reservation) -> bool) -> Result<(), CniError> {
        // A range that has become invalid must not keep addresses from being given back: it is not even read.
        let data_dir = data_dir(request)?;
        let Some(store) = Store::open_existing(&data_dir, request.conf.name.as_str())? else { return Ok(()) };
        store.sweep()?;
        for reservation in store.reservations()?.iter().filter(|reservation| gone(reservation)) {
            store.release(reservation.address)?;
        }
        Ok(())
    }
}

impl Plugin for HostLocal {
    fn name(&self) -> &'static str {
        "host-local"
    }

    fn add(&self, request: &Request, attachment: &Attachment, _: &Path) -> Result<CniResult, CniError> {
        self.allocate(request, attachment)
    }

    fn del(&self, request: &Request, attachment: &Attachment, _: Option<&Path>) -> Result<(), CniError> {
        self.release(request, &|reservation| reservation.is_of(attachment))
    }

    fn check(&self, request: &Request, attachment: &Attachment, _: &Path) -> Result<(), CniError> {
        self.verify(request, attachment)
    }

    fn gc(&self, request: &Request) -> Result<(), CniError> {
        let valid = request.conf.valid_attachments()?;
        self.release(request, &|reservation| !valid.iter().any(|attachment| reservation.is_of(attachment)))
    }

    fn status(&self, request: &Request) -> Result<(), CniError> {
        let unavailable = |error: CniError| CniError { code: ErrorCode::NOT_AVAILABLE, ..error };
        let conf = HostLocalConf::parse(request)?;
        let store = Store::open(&conf.data_dir, request.conf.name.as_str());
        let store = store.map_err(|error| unavailable(error.into()))?;
        let held = store.reservations().map_err(|error| unavailable(error.into()))?;
        for set in &conf.sets {
            pick(set, None, &held, &[]).map_err(unavailable)?;
        }
        Ok(())
    }
}

/// An address for one range set.
#[derive(Debug)]
struct Choice {
    set: usize,
    address: IpAddr,
    ip: IpConfig,
    /// The attachment holds it already.
    held: bool,
}

/// Chooses an address for each set: one it holds, the requested one, or the next free one.
fn choose(
    conf: &HostLocalConf,
    attachment: &Attachment,
    held: &[Reservation],
    last: &dyn Fn(usize) -> Result<Option<IpAddr>, CniError>,
) -> Result<Vec<Choice>, CniError> {
    let mut unmet = conf.requested.clone();
    let mut choices: Vec<Choice> = Vec::new();
    for (set, ranges) in conf.sets.iter().enumerate() {
        let wanted = unmet.iter().position(|address| ranges.range_of(*address).is_some());
        let wanted = wanted.map(|index| unmet.remove(index));
        let own = held.iter().filter(|found| found.is_of(attachment)).map(|found| found.address);
        let own = own.filter(|address| ranges.range_of(*address).is_some()).min();
        let address = match (wanted, own) {
            (Some(wanted), Some(own)) if wanted != own => {
                let msg =
                    format!("requested address {wanted}: {} holds {own} already", attachment.container_id);
                return Err(CniError::new(ErrorCode::INVALID_NETWORK_CONFIG, msg));
            }
            (_, Some(own)) => own,
            (Some(wanted), None) => free(wanted, held)?,
            (None, None) => {
                let reserved: Vec<IpAddr> = conf.requested.clone();
                pick(ranges, last(set)?, held, &reserved)?
            }
        };
        let range = ranges.range_of(address).expect("the address was found in this set");
        let ip =
            IpConfig { address: range.with_prefix(address), gateway: Some(range.gateway), interface: None };
        choices.push(Choice { set, address, ip, held: own.is_some() });
    }
    match unmet.first() {
        Some(address) => {
            let msg = format!("requested address {address}: in no range that is free to hand out");
            Err(CniError::new(ErrorCode::INVALID_NETWORK_CONFIG, msg))
        }
        None => Ok(choices),
    }
}

fn free(wanted: IpAddr, held: &[Reservation]) -> Result<IpAddr, CniError> {
    match held.iter().find(|found| found.address == wanted) {
        None => Ok(wanted),
        Some(holder) => {
            let msg = format!("requested address {wanted}: held by container {}", holder.container);
            Err(CniError::new(ErrorCode::INVALID_NETWORK_CONFIG, msg))
        }
    }
}

fn pick(
    set: &RangeSet,
    last: Option<IpAddr>,
    held: &[Reservation],
    spared: &[IpAddr],
) -> Result<IpAddr, CniError> {
    let taken: std::collections::HashSet<IpAddr> =
        held.iter().map(|found| found.address).chain(spared.iter().copied()).collect();
    let found = set.pick(last, &|address| taken.contains(&address));
    found.map(|(address, _)| address).ok_or_else(|| {
        CniError::new(ErrorCode::TRY_AGAIN_LATER, format!("no IP addresses available in range set: {set}"))
    })
}

/// `ipam.dataDir` alone.
fn data_dir(request: &Request) -> Result<std::path::PathBuf, CniError> {
    let ipam = request.conf.top().object("ipam")?;
    let dir = ipam.map(|ipam| ipam.string("dataDir")).transpose()?.flatten();
    Ok(dir.filter(|dir| !dir.is_empty()).unwrap_or(super::conf::DATA_DIR).into())
}

/// The resolver configuration in a file of resolv.conf's format.
fn read_resolv_conf(path: &Path) -> Result<Dns, CniError> {
    const LIMIT: usize = 64 << 10;
    let text = std::fs::read(path).map_err(|error| {
        let what = format!("ipam.resolvConf: reading {}", path.display());
        CniError::caused(ErrorCode::IO_FAILURE, what, &error)
    })?;
    let text = String::from_utf8_lossy(&text[..text.len().min(LIMIT)]).into_owned();
    let mut dns = Dns::default();
    for line in text.lines() {
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => dns.nameservers.extend(words.next()),
            Some("domain") => dns.domain = words.next().unwrap_or_default(),
            Some("search") => dns.search = words.collect(),
            Some("options") => dns.options.extend(words),
            _ => {}
        }
    }
    Ok(dns)
}

#[cfg(test)]
mod tests {
    use proto::cni::NetConf;
    use proto::cni::plugin::OwnNetns;
    use serde_json::{Value, json};

    use super::*;

    fn request(dir: &Path, extra: Value) -> Request {
        let mut conf = json!({"cniVersion": "1.1.0", "name": "n", "type": "host-local", "ipam": {
            "type": "host-local", "dataDir": dir, "routes": [{"dst": "0.0.0.0/0"}],
            "ranges": [[{"subnet": "10.1.0.0/29"}], [{"subnet": "fd00::/64"}]]}});
        let (Value::Object(conf), Value::Object(extra)) = (&mut conf, extra) else { unreachable!() };
        conf.extend(extra);
        let conf = NetConf::new(conf.clone()).unwrap();
        Request { conf, args: Default::default(), path: Vec::new(), own_netns: OwnNetns::Refused }
    }

    fn attachment(container: &str) -> Attachment {
        Attachment { container_id: container.parse().unwrap(), ifname: "eth0".parse().unwrap() }
    }

    fn add(request: &Request, container: &str) -> Result<String, String> {
        let result =
            HostLocal.allocate(request, &attachment(container)).map_err(|error| error.to_string())?;
        Ok(result.ips.iter().map(|ip| ip.address.to_string()).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn addresses_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let plain = request(dir.path(), json!({}));
        assert_eq!(add(&plain, "c1").unwrap(), "10.1.0.2/29 fd00::2/64");
        assert_eq!(add(&plain, "c1").unwrap(), "10.1.0.2/29 fd00::2/64", "the same again");
        assert_eq!(add(&plain, "c2").unwrap(), "10.1.0.3/29 fd00::3/64");
        HostLocal.del(&plain, &attachment("c1"), None).unwrap();
        HostLocal.del(&plain, &attachment("c1"), None).unwrap();
        assert!(HostLocal.verify(&plain, &attachment("c1")).is_err());
        HostLocal.verify(&plain, &attachment("c2")).unwrap();
        assert_eq!(add(&plain, "c3").unwrap(), "10.1.0.4/29 fd00::4/64", "freed ones come last");
        assert_eq!(add(&plain, "c4").unwrap(), "10.1.0.5/29 fd00::5/64");
        assert_eq!(add(&plain, "c5").unwrap(), "10.1.0.6/29 fd00::6/64");
        assert_eq!(add(&plain, "c6").unwrap(), "10.1.0.2/29 fd00::7/64");
        let full = "no IP addresses available in range set: 10.1.0.1-10.1.0.7";
        assert_eq!(add(&plain, "c7"), Err(full.to_owned()));
        assert_eq!(HostLocal.status(&plain).unwrap_err().code, ErrorCode::NOT_AVAILABLE);
        let keep = json!({"cni.dev/valid-attachments": [{"containerID": "c6", "ifname": "eth0"}]});
        HostLocal.gc(&request(dir.path(), keep)).unwrap();
        HostLocal.status(&plain).unwrap();
        let left = Store::open(dir.path(), "n").unwrap().reservations().unwrap();
        assert_eq!(left.iter().filter(|found| found.container != "c6").count(), 0);
        assert_eq!(left.len(), 2);
    }

    #[test]
    fn addresses_can_be_requested() {
        let dir = tempfile::tempdir().unwrap();
        let ask = |ips: Value| request(dir.path(), json!({"runtimeConfig": {"ips": ips}}));
        let check = |ips: Value, container: &str, expect: Result<&str, &str>| {
            let expect = expect.map(str::to_owned).map_err(str::to_owned);
            assert_eq!(add(&ask(ips.clone()), container), expect, "{ips}");
        };
        check(json!(["10.1.0.5/29"]), "c1", Ok("10.1.0.5/29 fd00::2/64"));
        check(json!(["fd00::99"]), "c2", Ok("10.1.0.6/29 fd00::99/64"));
        check(json!(["10.1.0.5"]), "c3", Err("requested address 10.1.0.5: held by container c1"));
        let nowhere = "requested address 10.1.0.1: in no range that is free to hand out";
        check(json!(["10.1.0.1"]), "c3", Err(nowhere));
        check(json!(["10.1.0.4"]), "c1", Err("requested address 10.1.0.4: c1 holds 10.1.0.5 already"));
        check(json!(["x"]), "c3", Err("runtimeConfig.ips[0]: \"x\" is not an address"));
        assert!(
            Store::open(dir.path(), "n").unwrap().reservations().unwrap().len() == 4,
            "failures leave nothing"
        );
    }

    #[test]
    fn resolver_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resolv.conf");
        std::fs::write(&file, "# x\nnameserver 10.0.0.1\nsearch a b\noptions ndots:5\ndomain c\n").unwrap();
        let dns = read_resolv_conf(&file).unwrap();
        assert_eq!(dns.nameservers, ["10.0.0.1"]);
        assert_eq!(
            (dns.search, dns.domain, dns.options),
            (vec!["a".into(), "b".into()], "c".into(), vec!["ndots:5".into()])
        );
    }
}
