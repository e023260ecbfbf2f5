//! Rules, chains and elements that are there, but are not what they were: CHECK names them, and `repair` mends them.

use serde_json::{Value, json};

use super::node::{Added, NetNs, Node, privileged};
use super::repair::{ALL, record, repair, with_firewall};
use super::wire::{connect, serve, wire};

/// A node with a pod that uses every table, and what its ADD gave.
struct Scene {
    node: Node,
    pod: NetNs,
    world: NetNs,
    ports: Value,
    added: Added,
}

impl Scene {
    fn new() -> Self {
        let node = Node::new(with_firewall);
        let (pod, world) = (NetNs::new(), NetNs::new());
        wire(&node.host, &world, ("192.0.2.1/24", "192.0.2.2/24"));
        // A table of iptables is there.
        node.host.output("iptables", &["-P", "FORWARD", "ACCEPT"]);
        let ports = json!([{"hostPort": 8080, "containerPort": 80}]);
        let added = node.add("a", &pod, ports.clone()).unwrap();
        record(&node, "a", &pod, &ports, &added);
        serve(&pod, "0.0.0.0:80");
        serve(&world, "0.0.0.0:1000");
        Self { node, pod, world, ports, added }
    }

    fn check(&self) -> Result<(), proto::cni::CniError> {
        self.node.check("a", &self.pod, self.ports.clone(), &self.added)
    }

    fn works(&self, what: &str) {
        self.check().unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(connect(&self.world, "192.0.2.1:8080"), Ok("192.0.2.2".to_owned()), "{what}");
        assert_eq!(connect(&self.pod, "192.0.2.2:1000"), Ok("192.0.2.1".to_owned()), "{what}");
    }

    /// Runs the commands of `nft`; then CHECK tells `expect`, and all is well again after `repair`.
    fn damage(&self, commands: &str, expect: &str) {
        let commands = commands.replace("POD", &self.added.ip4().to_string());
        let before = self.node.leftovers();
        self.node.host.output("nft", &[&commands]);
        let error = self.check().expect_err(&commands);
        assert!(error.to_string().contains(expect), "{commands}: {error}");
        repair(&self.node, &ALL).unwrap();
        self.works(&commands);
        assert_eq!(self.node.leftovers(), before, "{commands}");
    }

    /// Replaces the first rule of the chain that has `comment` by one that has it too.
    fn replace(&self, chain: &str, comment: &str, rule: &str, expect: &str) {
        let quoted = format!("comment \"{comment}\"");
        let listed = self.node.host.output("nft", &["-a", "list", "chain", &chain.replace(' ', "\t")]);
        let line = listed.lines().find(|line| line.contains(&quoted));
        let handle =
            line.and_then(|line| line.rsplit_once("handle ")).unwrap_or_else(|| panic!("{listed}")).1;
        self.damage(&format!("replace rule {chain} handle {handle} {rule} {quoted}"), expect);
    }
}

#[test]
fn a_rule_that_does_something_else_is_noticed() {
    if !privileged() {
        return;
    }
    let scene = Scene::new();
    scene.works("before");
    let replace = |chain: &str, comment: &str, rule: &str| {
        let name = chain.rsplit(' ').next().unwrap_or_default();
        scene.replace(chain, comment, rule, &format!("rule {comment:?} of chain {name} was altered"));
    };
    let masquerade = "inet berth_masquerade";
    let leaving = "leaving_10.211.64.0/20";
    replace("inet berth_portmap publish", "published in ports4", "drop");
    replace("inet berth_portmap publish", "not to this host", "fib daddr type local return");
    replace("inet berth_portmap prerouting", "published ports", "goto publish");
    replace("inet berth_portmap postrouting", "sources on the way to pods4", "ip daddr vmap @pods4");
    replace("inet berth_portmap from_10.211.64.0/20", "from_10.211.64.0/20: loopback", "masquerade");
    replace("inet berth_localnet prerouting", "from outside to the loopback", "ip daddr 127.0.0.1 drop");
    replace(&format!("{masquerade} postrouting"), "what pods4 send", "ip daddr vmap @pods4");
    replace(&format!("{masquerade} {leaving}"), &format!("{leaving}: outside"), "masquerade random");
    replace(&format!("{masquerade} {leaving}"), &format!("{leaving}: other pods"), "accept");
    replace(&format!("{masquerade} inside"), "inside 10.211.64.0/20", "ip daddr 10.0.0.0/8 accept");
    replace("inet berth_isolation forward", "published ports", "ct status snat accept");
    replace("inet berth_isolation targets", "to berth0", "oifname \"berth1\" drop");
    replace("inet berth_firewall forward", "to pods4", "ip saddr vmap @pods4");
    replace("inet berth_firewall isolated_links", "isolated_berth0: to other bridges", "iifname \"x\" drop");
    replace("bridge berth_firewall refused", "isolated", "accept");
    let accepting = format!("a rule of chain CNI-FORWARD for {} was altered", scene.added.ip4());
    scene.replace("ip filter CNI-FORWARD", "berth/a/eth0", "ip daddr POD drop", &accepting);
    let node = scene.node;
    node.del("a", None).unwrap();
    assert_eq!(node.leftovers(), [""; 0]);
}

#[test]
fn chains_and_elements_that_are_others_are_noticed() {
    if !privileged() {
        return;
    }
    let scene = Scene::new();
    let called = |chain: &str| format!("chain {chain} is not called as it must be");
    let again = |chain: &str, hook: &str, rules: &str| {
        let add = format!("add chain {chain} {{ {hook} policy accept; }}; {rules}");
        format!("flush chain {chain}; delete chain {chain}; {add}")
    };
    let hook = "type nat hook prerouting priority 5;";
    let rule = "add rule inet berth_portmap prerouting jump publish comment \"published ports\"";
    scene.damage(&again("inet berth_portmap prerouting", hook, rule), &called("prerouting"));
    let rules = "add rule inet berth_firewall forward ip daddr vmap @pods4 comment \"to pods4\"; \
        add rule inet berth_firewall forward ip6 daddr vmap @pods6 comment \"to pods6\"";
    let hook = "type filter hook input priority 0;";
    scene.damage(&again("inet berth_firewall forward", hook, rules), &called("forward"));
    scene.damage("chain inet berth_isolation forward { policy drop; }", &called("forward"));
    scene.damage("chain bridge berth_firewall forward { policy drop; }", &called("forward"));
    for table in ["portmap", "masquerade", "isolation", "firewall", "localnet"] {
        let dormant = format!("table berth_{table} is dormant");
        scene.damage(&format!("add table inet berth_{table} {{ flags dormant; }}"), &dormant);
    }
    let others = "chain publish has other rules than its own";
    scene.damage("insert rule inet berth_portmap publish drop", others);
    scene
        .damage("add rule inet berth_masquerade leaving_10.211.64.0/20 drop", "has other rules than its own");
    let element = |table: &str, map: &str, key: &str, data: &str| {
        let at = format!("element inet {table} {map}");
        let add = format!("add {at} {{ {key} comment \"berth/a/eth0\" : {data} }}");
        scene.damage(
            &format!("delete {at} {{ {key} }}; {add}"),
            &format!("an element of map {map} was altered"),
        );
        // Without an owner, too.
        let add = format!("add {at} {{ {key} : {data} }}");
        scene.damage(
            &format!("delete {at} {{ {key} }}; {add}"),
            &format!("an element of map {map} belongs to \"\""),
        );
    };
    element("berth_portmap", "ports4", "tcp . 8080", "10.211.64.9 . 80");
    element("berth_portmap", "ports4", "tcp . 8080", "POD . 81");
    element("berth_portmap", "pods4", "POD", "drop");
    element("berth_masquerade", "pods4", "POD", "goto leaving_10.211.64.0/20");
    element("berth_masquerade", "pods4", "POD", "jump inside");
    element("berth_isolation", "from4", "POD", "jump targets");
    element("berth_firewall", "pods4", "POD", "accept");
    let node = scene.node;
    node.del("a", None).unwrap();
    assert_eq!(node.leftovers(), [""; 0]);
}
