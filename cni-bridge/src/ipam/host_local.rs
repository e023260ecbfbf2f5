//! host-local: addresses out of ranges of this host, reserved in files.

use std::io::Read;
use std::net::IpAddr;
use std::path::Path;

use proto::cni::result::{Dns, IpConfig};
use proto::cni::{Attachment, CniError, CniResult, ErrorCode, Plugin, Request};

use super::Given;
use super::conf::{HostLocalConf, data_dir};
use super::given::Past;
use super::owners::Held;
use super::pool::{self, Pool};
use super::range::RangeSet;
use super::store::{Reservation, Store};
use crate::net::netns::NetNs;

/// The plugin.
#[derive(Debug, Clone, Copy)]
pub struct HostLocal;

impl HostLocal {
    /// Reserves one address of each range set for the container in `netns`; what the attachment holds already, it keeps.
    ///
    /// # Errors
    /// [`ErrorCode::TRY_AGAIN_LATER`] when a set is exhausted; [`ErrorCode::INVALID_NETWORK_CONFIG`] when a
    /// requested address is taken or in no range.
    pub fn allocate(
        &self,
        request: &Request,
        attachment: &Attachment,
        netns: &Path,
    ) -> Result<Given, CniError> {
        request.args.expect_only(&["IP", "MAC", "GATEWAY"])?;
        let conf = HostLocalConf::parse(request)?;
        let dns = conf.resolv_conf.as_deref().map(read_resolv_conf).transpose()?.unwrap_or_default();
        let store = Store::open(&conf.data_dir, request.conf.name.as_str())?;
        pool::wake(&store, &conf.sets, conf.rest)?;
        let own = noted(&store, attachment)?;
        let choices = choose(&conf, &store, attachment, &own)?;
        let held = Held {
            boot: store.boot().to_owned(),
            netns: NetNs::open(netns).and_then(|netns| netns.identity()).ok(),
            addresses: choices.iter().map(|choice| choice.address).collect(),
        };
        // Before the addresses: killed in between, DEL finds what there is.
        store.noted(store.owners().write(attachment, &held))?;
        let fresh = |choice: &&Choice| !choice.held;
        for choice in &choices {
            Pool::new(&store, &conf.sets[choice.number], choice.number).begin_notes()?;
        }
        let mut past = if choices.iter().any(|choice| choice.held) { Past::Unknown } else { Past::Unused };
        for choice in choices.iter().filter(fresh) {
            let pool = Pool::new(&store, &conf.sets[choice.number], choice.number);
            match pool.take(choice.address, attachment) {
                Ok(Past::Unused) => {}
                Ok(Past::Unknown) => past = Past::Unknown,
                Err(error) => {
                    // All or nothing; what cannot be undone now, DEL will.
                    let _ = choices.iter().filter(fresh).try_for_each(|choice| store.release(choice.address));
                    return Err(error.into());
                }
            }
        }
        let ips = choices.into_iter().map(|choice| choice.ip).collect();
        let result = CniResult { ips, routes: conf.routes, dns, ..CniResult::default() };
        Ok(Given { result, past })
    }

    /// The addresses that the attachment holds, as far as they were noted.
    ///
    /// # Errors
    /// [`ErrorCode::IO_FAILURE`].
    pub fn noted(&self, request: &Request, attachment: &Attachment) -> Result<Vec<IpAddr>, CniError> {
        let store = Store::open_existing(&data_dir(request)?, request.conf.name.as_str())?;
        store.map_or(Ok(Vec::new()), |store| noted(&store, attachment))
    }

    /// Verifies that the attachment still holds what `prevResult` says it got.
    ///
    /// # Errors
    /// [`ErrorCode::PLUGIN`] naming the address that is not its own.
    pub fn verify(&self, request: &Request, attachment: &Attachment) -> Result<(), CniError> {
        let conf = HostLocalConf::parse(request)?;
        let store = Store::open_existing(&conf.data_dir, request.conf.name.as_str())?;
        let own = store.map(|store| all_of(&store, attachment)).transpose()?.unwrap_or_default();
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
}

impl Plugin for HostLocal {
    fn name(&self) -> &'static str {
        "host-local"
    }

    fn add(&self, request: &Request, attachment: &Attachment, netns: &Path) -> Result<CniResult, CniError> {
        self.allocate(request, attachment, netns).map(|given| given.result)
    }

    fn del(&self, request: &Request, attachment: &Attachment, _: Option<&Path>) -> Result<(), CniError> {
        let Some(store) = Store::open_existing(&data_dir(request)?, request.conf.name.as_str())? else {
            return Ok(());
        };
        store.sweep()?;
        all_of(&store, attachment)?.into_iter().try_for_each(|address| store.retire(address))?;
        Ok(store.noted(store.owners().remove(attachment))?)
    }

    fn check(&self, request: &Request, attachment: &Attachment, _: &Path) -> Result<(), CniError> {
        self.verify(request, attachment)
    }

    fn gc(&self, request: &Request) -> Result<(), CniError> {
        let valid = request.conf.valid_attachments()?;
        let Some(store) = Store::open_existing(&data_dir(request)?, request.conf.name.as_str())? else {
            return Ok(());
        };
        store.sweep()?;
        let stale = |found: &Reservation| !valid.iter().any(|attachment| found.is_of(attachment));
        for reservation in store.reservations()?.iter().filter(|found| stale(found)) {
            store.retire(reservation.address)?;
        }
        for (attachment, _) in store.noted(store.owners().all())? {
            if !valid.contains(&attachment) {
                store.noted(store.owners().remove(&attachment))?;
            }
        }
        Ok(())
    }

    fn status(&self, request: &Request) -> Result<(), CniError> {
        let unavailable = |error: CniError| CniError { code: ErrorCode::NOT_AVAILABLE, ..error };
        if ranges_come_with_add(request)? {
            return Ok(());
        }
        let conf = HostLocalConf::parse(request)?;
        let store = Store::open(&conf.data_dir, request.conf.name.as_str());
        let store = store.map_err(|error| unavailable(error.into()))?;
        pool::wake(&store, &conf.sets, conf.rest).map_err(|error| unavailable(error.into()))?;
        for (number, set) in conf.sets.iter().enumerate() {
            pick(&store, set, number, &[]).map_err(unavailable)?;
        }
        Ok(())
    }
}

/// Whether the configuration leaves the ranges to the capability `ipRanges`, which STATUS is never given.
fn ranges_come_with_add(request: &Request) -> Result<bool, CniError> {
    let Some(ipam) = request.conf.top().object("ipam")? else { return Ok(false) };
    let given = match request.conf.runtime_config()? {
        Some(told) => !told.list("ipRanges")?.is_empty(),
        None => false,
    };
    Ok(!given && ipam.get("subnet").is_none() && ipam.list("ranges")?.is_empty())
}

/// What the attachment holds, as far as it was noted.
fn noted(store: &Store, attachment: &Attachment) -> Result<Vec<IpAddr>, CniError> {
    let held = store.noted(store.owners().read(attachment))?.unwrap_or_default();
    let mut own = Vec::new();
    for address in held.addresses {
        if store.holder(address)?.is_some_and(|found| found.is_of(attachment)) {
            own.push(address);
        }
    }
    Ok(own)
}

/// What the attachment holds. What another plugin gave it was not noted: then every reservation is read.
fn all_of(store: &Store, attachment: &Attachment) -> Result<Vec<IpAddr>, CniError> {
    let own = noted(store, attachment)?;
    if !own.is_empty() {
        return Ok(own);
    }
    let all = store.reservations()?;
    Ok(all.iter().filter(|found| found.is_of(attachment)).map(|found| found.address).collect())
}

/// An address for one range set.
#[derive(Debug)]
struct Choice {
    /// Number of the set.
    number: usize,
    address: IpAddr,
    ip: IpConfig,
    /// The attachment holds it already.
    held: bool,
}

/// Chooses an address for each set: one it holds, the requested one, or the next free one.
fn choose(
    conf: &HostLocalConf,
    store: &Store,
    attachment: &Attachment,
    own: &[IpAddr],
) -> Result<Vec<Choice>, CniError> {
    let mut unmet = conf.requested.clone();
    let mut choices: Vec<Choice> = Vec::new();
    for (number, ranges) in conf.sets.iter().enumerate() {
        let wanted = unmet.iter().position(|address| ranges.offers(*address));
        let wanted = wanted.map(|index| unmet.remove(index));
        let own = own.iter().copied().filter(|address| ranges.offers(*address)).min();
        let address = match (wanted, own) {
            (Some(wanted), Some(own)) if wanted != own => {
                let msg =
                    format!("requested address {wanted}: {} holds {own} already", attachment.container_id);
                return Err(CniError::new(ErrorCode::INVALID_NETWORK_CONFIG, msg));
            }
            (_, Some(own)) => own,
            (Some(wanted), None) => free(store, wanted)?,
            (None, None) => pick(store, ranges, number, &conf.requested)?,
        };
        let range = ranges.range_of(address).expect("the address was found in this set");
        let ip = IpConfig { address: range.with_prefix(address), gateway: range.gateway, interface: None };
        choices.push(Choice { number, address, ip, held: own.is_some() });
    }
    match unmet.first() {
        Some(address) => {
            let msg = format!("requested address {address}: in no range that is free to hand out");
            Err(CniError::new(ErrorCode::INVALID_NETWORK_CONFIG, msg))
        }
        None => Ok(choices),
    }
}

fn free(store: &Store, wanted: IpAddr) -> Result<IpAddr, CniError> {
    match store.holder(wanted)? {
        None => Ok(wanted),
        Some(holder) => {
            let msg = format!("requested address {wanted}: held by container {}", holder.container);
            Err(CniError::new(ErrorCode::INVALID_NETWORK_CONFIG, msg))
        }
    }
}

fn pick(store: &Store, set: &RangeSet, number: usize, spared: &[IpAddr]) -> Result<IpAddr, CniError> {
    Pool::new(store, set, number).pick(spared)?.ok_or_else(|| {
        CniError::new(ErrorCode::TRY_AGAIN_LATER, format!("no IP addresses available in range set: {set}"))
    })
}

/// The resolver configuration in a file of resolv.conf's format.
fn read_resolv_conf(path: &Path) -> Result<Dns, CniError> {
    const LIMIT: u64 = 64 << 10;
    let mut text = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(LIMIT).read_to_end(&mut text));
    read.map_err(|error| {
        let what = format!("ipam.resolvConf: reading {}", path.display());
        CniError::caused(ErrorCode::IO_FAILURE, what, &error)
    })?;
    let text = String::from_utf8_lossy(&text);
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
        let given = HostLocal
            .allocate(request, &attachment(container), Path::new(""))
            .map_err(|error| error.to_string())?;
        Ok(given.result.ips.iter().map(|ip| ip.address.to_string()).collect::<Vec<_>>().join(" "))
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
    fn what_an_earlier_boot_gave_is_free_again() {
        let dir = tempfile::tempdir().unwrap();
        let plain = request(dir.path(), json!({"ipam": {"dataDir": dir.path(), "subnet": "10.1.0.0/29"}}));
        let file = |name: &str| dir.path().join("n").join(name);
        add(&plain, "c1").unwrap();
        add(&plain, "c2").unwrap();
        // Another plugin's, which says nothing of boots.
        std::fs::write(file("10.1.0.4"), "c9\r\neth0").unwrap();
        std::fs::write(file(".boot"), "earlier").unwrap();
        let note = std::fs::read_to_string(file(".owners/c1@eth0")).unwrap();
        let boot = note.lines().next().unwrap().to_owned();
        std::fs::write(file(".owners/c1@eth0"), note.replace(&boot, "boot earlier")).unwrap();
        std::fs::write(file(".owners/c2@eth0"), "").unwrap();
        assert_eq!(add(&plain, "c3").unwrap(), "10.1.0.5/29", "round robin goes on");
        let mut held = Store::open(dir.path(), "n").unwrap().held().unwrap();
        held.sort();
        assert_eq!(held, ["10.1.0.4".parse::<IpAddr>().unwrap(), "10.1.0.5".parse().unwrap()]);
        assert!(!file(".owners/c1@eth0").exists());
    }

    #[test]
    fn another_plugin_may_work_on_the_same_store() {
        let dir = tempfile::tempdir().unwrap();
        let plain = request(dir.path(), json!({"ipam": {"dataDir": dir.path(), "subnet": "10.1.0.0/29"}}));
        let file = |name: &str| dir.path().join("n").join(name);
        add(&plain, "c1").unwrap();
        // It gives the next two, crashes at the third, and takes back ours.
        std::fs::write(file("10.1.0.3"), "c2\r\neth0").unwrap();
        std::fs::write(file("10.1.0.4"), "c3\r\neth0").unwrap();
        std::fs::write(file("10.1.0.5"), "").unwrap();
        std::fs::remove_file(file("10.1.0.2")).unwrap();
        assert_eq!(add(&plain, "c4").unwrap(), "10.1.0.5/29", "an empty file is no reservation");
        assert_eq!(add(&plain, "c5").unwrap(), "10.1.0.6/29");
        assert_eq!(
            add(&plain, "c6").unwrap(),
            "10.1.0.2/29",
            "what it freed is found when nothing else is left"
        );
        HostLocal.del(&plain, &attachment("c2"), None).unwrap();
        assert!(!file("10.1.0.3").exists(), "what it gave is given back");
    }

    #[test]
    fn freed_addresses_rest() {
        let dir = tempfile::tempdir().unwrap();
        let with = |rest: u64| {
            let ipam = json!({"dataDir": dir.path(), "subnet": "10.1.0.0/29", "restSeconds": rest});
            request(dir.path(), json!({"ipam": ipam}))
        };
        for name in ["c2", "c3", "c4", "c5"] {
            add(&with(600), name).unwrap();
        }
        HostLocal.del(&with(600), &attachment("c4"), None).unwrap();
        HostLocal.del(&with(600), &attachment("c2"), None).unwrap();
        assert_eq!(add(&with(600), "d1").unwrap(), "10.1.0.6/29");
        assert_eq!(add(&with(600), "d2").unwrap(), "10.1.0.4/29", "it has rested longest");
        HostLocal.del(&with(600), &attachment("d2"), None).unwrap();
        assert_eq!(add(&with(0), "d3").unwrap(), "10.1.0.2/29", "nobody rests: the next after the last");
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
