//! Results and errors of every specification version: golden conversions, round trips, and the crate `cni-plugin`
//! as an independent reader where it reaches (its types follow 1.0.0).
#![allow(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::IpAddr;

use proptest::prelude::*;
use proto::cni::result::{Dns, Interface, IpConfig, Route};
use proto::cni::{CniError, CniResult, ErrorCode, SpecVersion};
use serde_json::{Value, json};

fn sample() -> CniResult {
    let route =
        |dst: &str, gw: Option<&str>| Route::new(dst.parse().unwrap(), gw.map(|gw| gw.parse().unwrap()));
    CniResult {
        interfaces: vec![
            Interface { name: "berth0".into(), mac: "0a:00:00:00:00:01".into(), ..Interface::default() },
            Interface {
                name: "eth0".into(),
                mac: "0a:00:00:00:00:02".into(),
                mtu: 1450,
                sandbox: "/var/run/netns/a".into(),
                pci_id: "0000:00:01.0".into(),
                ..Interface::default()
            },
        ],
        ips: vec![
            IpConfig {
                address: "10.1.0.5/16".parse().unwrap(),
                gateway: Some("10.1.0.1".parse().unwrap()),
                interface: Some(1),
            },
            IpConfig { address: "fd00::5/64".parse().unwrap(), gateway: None, interface: Some(1) },
        ],
        routes: vec![
            Route { mtu: Some(1400), table: Some(7), ..route("0.0.0.0/0", Some("10.1.0.1")) },
            route("fd01::/64", None),
        ],
        dns: Dns { nameservers: vec!["10.1.0.1".into()], ..Dns::default() },
        ..CniResult::default()
    }
}

#[test]
fn golden_conversions() {
    let check = |version: SpecVersion, expect: Value| {
        let mut expect = expect;
        expect["cniVersion"] = version.as_str().into();
        expect["dns"] = json!({"nameservers": ["10.1.0.1"]});
        assert_eq!(sample().to_json(version).unwrap(), expect, "{version}");
    };
    let legacy = json!({
        "ip4": {"ip": "10.1.0.5/16", "gateway": "10.1.0.1", "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}]},
        "ip6": {"ip": "fd00::5/64", "routes": [{"dst": "fd01::/64"}]},
    });
    check(SpecVersion::V0_1_0, legacy.clone());
    check(SpecVersion::V0_2_0, legacy);
    let plain = json!({
        "interfaces": [
            {"name": "berth0", "mac": "0a:00:00:00:00:01"},
            {"name": "eth0", "mac": "0a:00:00:00:00:02", "sandbox": "/var/run/netns/a"},
        ],
        "ips": [
            {"address": "10.1.0.5/16", "gateway": "10.1.0.1", "interface": 1},
            {"address": "fd00::5/64", "interface": 1},
        ],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}, {"dst": "fd01::/64"}],
    });
    check(SpecVersion::V1_0_0, plain.clone());
    let mut families = plain.clone();
    families["ips"][0]["version"] = "4".into();
    families["ips"][1]["version"] = "6".into();
    for version in [SpecVersion::V0_3_0, SpecVersion::V0_3_1, SpecVersion::V0_4_0] {
        check(version, families.clone());
    }
    let mut newest = plain;
    newest["interfaces"][1]["mtu"] = 1450.into();
    newest["interfaces"][1]["pciID"] = "0000:00:01.0".into();
    newest["routes"][0]["mtu"] = 1400.into();
    newest["routes"][0]["table"] = 7.into();
    check(SpecVersion::V1_1_0, newest);
}

#[test]
fn old_results_are_read() {
    let check = |json: Value, ips: &[&str], routes: &[(&str, Option<&str>)]| {
        let result = CniResult::parse(&json, SpecVersion::V0_1_0).unwrap();
        let found: Vec<String> = result.ips.iter().map(|ip| ip.address.to_string()).collect();
        assert_eq!(found, ips, "{json}");
        let expect: Vec<(String, Option<IpAddr>)> =
            routes.iter().map(|(dst, gw)| ((*dst).into(), gw.map(|gw| gw.parse().unwrap()))).collect();
        let found: Vec<_> = result.routes.iter().map(|route| (route.dst.to_string(), route.gw)).collect();
        assert_eq!(found, expect, "{json}");
    };
    check(json!({}), &[], &[]);
    check(
        json!({"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.2/24", "gateway": "10.0.0.1",
               "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.0/16", "gw": "10.0.0.9"}]}}),
        &["10.0.0.2/24"],
        &[("0.0.0.0/0", Some("10.0.0.1")), ("10.9.0.0/16", Some("10.0.0.9"))],
    );
    check(
        json!({"cniVersion": "0.4.0", "ips": [{"version": "4", "address": "10.0.0.2/24", "gateway": ""}],
               "interfaces": null, "routes": [{"dst": "0.0.0.0/0"}], "dns": null}),
        &["10.0.0.2/24"],
        &[("0.0.0.0/0", None)],
    );
}

#[test]
fn bad_results_are_refused() {
    let check = |json: Value, code: ErrorCode| {
        let error = CniResult::parse(&json, SpecVersion::V1_0_0).unwrap_err();
        assert_eq!(error.code, code, "{json}: {error}");
    };
    check(json!({"cniVersion": "3.0.0"}), ErrorCode::INCOMPATIBLE_VERSION);
    check(json!({"ips": [{"address": "10.0.0.1"}]}), ErrorCode::DECODING_FAILURE);
    check(json!({"ips": [{"address": "10.0.0.1/33"}]}), ErrorCode::DECODING_FAILURE);
    check(json!({"ips": [{"address": "10.0.0.1/8", "interface": 0}]}), ErrorCode::DECODING_FAILURE);
    check(json!({"interfaces": [{}]}), ErrorCode::DECODING_FAILURE);
    check(json!([]), ErrorCode::DECODING_FAILURE);
    check(json!({"cniVersion": "0.2.0", "ip4": {"ip": 4}}), ErrorCode::DECODING_FAILURE);
    let nothing = CniResult::default().to_json(SpecVersion::V0_2_0).unwrap_err();
    assert_eq!(nothing.code, ErrorCode::INCOMPATIBLE_VERSION);
}

#[test]
fn cni_plugin_reads_our_results() {
    let value = sample().to_json(SpecVersion::V1_0_0).unwrap();
    let mut value = value;
    // The judge insists on a sandbox even for host interfaces, where the specification lets it be absent.
    value["interfaces"][0]["sandbox"] = "".into();
    let reply: cni_plugin::reply::SuccessReply = serde_json::from_value(value).unwrap();
    assert_eq!(reply.cni_version.to_string(), "1.0.0");
    assert_eq!(reply.ips[0].address.to_string(), "10.1.0.5/16");
    assert_eq!(reply.ips[0].interface, Some(1));
    assert_eq!(reply.routes[0].gw, Some("10.1.0.1".parse().unwrap()));
    assert_eq!(
        reply.interfaces[1].mac.map(|mac| mac.to_string().to_lowercase()),
        Some("0a:00:00:00:00:02".into())
    );
    assert!(reply.specific.is_empty());
}

#[test]
fn we_read_the_results_of_cni_plugin() {
    let reply = cni_plugin::reply::IpamSuccessReply {
        cni_version: "1.0.0".parse().unwrap(),
        ips: vec![cni_plugin::reply::Ip {
            address: "10.1.0.5/16".parse().unwrap(),
            gateway: Some("10.1.0.1".parse().unwrap()),
            interface: None,
        }],
        routes: vec![cni_plugin::reply::Route { dst: "0.0.0.0/0".parse().unwrap(), gw: None }],
        dns: Default::default(),
        specific: Default::default(),
    };
    let result = CniResult::parse(&serde_json::to_value(reply).unwrap(), SpecVersion::V1_0_0).unwrap();
    assert_eq!(result.ips[0].address, "10.1.0.5/16".parse().unwrap());
    assert_eq!(result.routes[0].dst, "0.0.0.0/0".parse().unwrap());
}

#[test]
fn cni_plugin_reads_our_errors() {
    let error = CniError::config("ipam.subnet", "missing");
    let text = CniError { details: "why".into(), ..error }.to_json(SpecVersion::V1_0_0);
    let reply: cni_plugin::reply::ErrorReply<'_> = serde_json::from_str(&text).unwrap();
    assert_eq!((reply.code, reply.msg, reply.details.as_str()), (7, "ipam.subnet: missing", "why"));
}

fn results() -> impl Strategy<Value = CniResult> {
    let address = prop_oneof![
        (any::<u32>(), 0u8..=32).prop_map(|(a, p)| format!("{}/{p}", std::net::Ipv4Addr::from(a))),
        (any::<u128>(), 0u8..=128).prop_map(|(a, p)| format!("{}/{p}", std::net::Ipv6Addr::from(a))),
    ]
    .prop_map(|text| text.parse::<ipnet::IpNet>().unwrap());
    let gateway = proptest::option::of(any::<u32>().prop_map(|a| IpAddr::from(a.to_be_bytes())));
    let interface =
        "[a-z]{1,15}".prop_map(|name| Interface { name, sandbox: "/n".into(), ..Interface::default() });
    let ips = (address.clone(), gateway.clone()).prop_map(|(address, gateway)| IpConfig {
        address,
        gateway,
        interface: None,
    });
    let routes = (address, gateway).prop_map(|(dst, gw)| Route::new(dst, gw));
    (
        proptest::collection::vec(interface, 0..3),
        proptest::collection::vec(ips, 0..4),
        proptest::collection::vec(routes, 0..4),
    )
        .prop_map(|(interfaces, ips, routes)| CniResult {
            interfaces,
            ips,
            routes,
            ..CniResult::default()
        })
}

proptest! {
    /// Versions from 0.3.0 on carry everything that 1.0.0 knows.
    #[test]
    fn newer_versions_lose_nothing(result in results()) {
        for version in SpecVersion::ALL.into_iter().filter(|version| *version >= SpecVersion::V0_3_0) {
            let back = CniResult::parse(&result.to_json(version).unwrap(), SpecVersion::V0_1_0).unwrap();
            prop_assert_eq!(&back, &result);
        }
    }

    /// What 0.2.0 can say at all, it says the same after a second trip.
    #[test]
    fn old_versions_are_stable(result in results()) {
        let Ok(once) = result.to_json(SpecVersion::V0_2_0) else { return Ok(()) };
        let back = CniResult::parse(&once, SpecVersion::V0_1_0).unwrap();
        let again = CniResult::parse(&back.to_json(SpecVersion::V0_2_0).unwrap(), SpecVersion::V0_1_0).unwrap();
        prop_assert_eq!(back, again);
    }

    /// Whatever JSON a plugin writes, reading it neither panics nor accepts an index out of bounds.
    #[test]
    fn arbitrary_text_does_not_panic(text in ".{0,200}") {
        let _ = CniError::parse(text.as_bytes());
        let _ = proto::cni::NetConfList::parse(text.as_bytes());
        if let Ok(value) = serde_json::from_str::<Value>(&text) {
            let _ = CniResult::parse(&value, SpecVersion::LATEST);
        }
    }
}
