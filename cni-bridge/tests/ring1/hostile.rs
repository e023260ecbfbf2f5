//! Hosts that are not as they should be: a full disk, kernel parameters that cannot be written.

use proto::cni::ErrorCode;
use serde_json::Value;

use super::macvlan::{conf, on_wire};
use super::node::{NetNs, Node, privileged};

/// Gives the host mounts of its own.
fn unshare_mounts(node: &Node) {
    node.host.run(|| {
        let flags = rustix::thread::UnshareFlags::NEWNS;
        // SAFETY: only the mounts of this thread and of the programs that it starts change.
        unsafe { rustix::thread::unshare_unsafe(flags) }.unwrap();
    });
    node.host.output("mount", &["--make-rprivate", "/"]);
}

fn shell(netns: &NetNs, script: &str) -> String {
    netns.output("sh", &["-c", script])
}

#[test]
fn del_needs_no_room_on_the_disk() {
    if !privileged() {
        return;
    }
    let node = Node::new(|json| json["plugins"].as_array_mut().unwrap().truncate(1));
    let dir = node.dir.path().to_str().unwrap().to_owned();
    unshare_mounts(&node);
    node.host.output("mount", &["-t", "tmpfs", "-o", "size=256k", "none", &dir]);
    let fill =
        format!("cat /dev/zero > {dir}/fill 2>/dev/null; echo x > {dir}/more 2>/dev/null || echo full");
    let reserved = format!("ls {dir}/berth");
    let check = |what: &str, before: &str| {
        let pod = NetNs::new();
        node.add("a", &pod, Value::Null).unwrap();
        assert!(shell(&node.host, &reserved).contains("10.211."), "{what}");
        shell(&node.host, &format!("cd {dir}/berth; {before}"));
        assert_eq!(shell(&node.host, &fill), "full\n", "{what}");
        node.del("a", Some(&pod.path)).unwrap();
        node.del("a", None).unwrap();
        assert!(!shell(&node.host, &reserved).contains("10.211."), "{what}");
        shell(&node.host, &format!("rm {dir}/fill {dir}/more"));
    };
    check("nobody rests yet", "rm -f .cooling");
    check("another boot's store", "echo earlier > .boot");
    let pod = NetNs::new();
    assert_eq!(shell(&node.host, &fill), "full\n");
    let error = node.add("b", &pod, Value::Null).err().unwrap();
    assert_eq!(error.code, ErrorCode::IO_FAILURE, "ADD cannot do without: {error}");
}

#[test]
fn kernel_parameters_may_be_read_only() {
    if !privileged() {
        return;
    }
    let (node, _world) = on_wire(conf());
    unshare_mounts(&node);
    shell(&node.host, "mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys");
    let pod = NetNs::new();
    let added = node.add("a", &pod, Value::Null).unwrap();
    node.check("a", &pod, Value::Null, &added).unwrap();
    node.del("a", Some(&pod.path)).unwrap();
    assert_eq!(node.leftovers(), [""; 0]);
}
