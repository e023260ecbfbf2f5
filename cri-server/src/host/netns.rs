//! Network namespaces of pods, seen from outside. A namespace may have no process: a thread of its own enters it.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::kept::Shown;

/// How long a connection over loopback may take: a service whose queue is full answers late or never.
const CONNECT: Duration = Duration::from_secs(10);

/// What went over a link.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// Its name, for instance `lo` or `eth0`.
    pub name: String,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Packets that were received wrongly.
    pub rx_errors: u64,
    /// Packets that were received and dropped.
    pub rx_dropped: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Packets that could not be sent.
    pub tx_errors: u64,
    /// Packets that were dropped instead of being sent.
    pub tx_dropped: u64,
}

/// Sockets that belong to a network namespace wherever they are used, not connected yet.
#[derive(Debug)]
pub struct TcpSockets {
    v4: OwnedFd,
    /// `None` where the kernel has no IPv6.
    v6: Option<OwnedFd>,
}

/// Makes sockets in the network namespace pinned at `pin`, or in that of this process. Blocks for less than a
/// millisecond.
pub fn tcp_sockets(pin: Option<&Path>) -> io::Result<TcpSockets> {
    let Some(pin) = pin.map(Path::to_path_buf) else { return open_sockets() };
    let work = move || {
        enter(&pin)?;
        open_sockets()
    };
    let thread = std::thread::Builder::new().name("netns".into()).stack_size(256 << 10).spawn(work)?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread for network namespaces died")))
}

fn open_sockets() -> io::Result<TcpSockets> {
    let open = |family| {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        rustix::net::socket_with(family, SocketType::STREAM, flags, None)
    };
    Ok(TcpSockets { v4: open(AddressFamily::INET)?, v6: open(AddressFamily::INET6).ok() })
}

/// Connects to `port` of loopback in the sockets' namespace: by IPv4, and where nobody listens there by IPv6.
pub async fn connect_loopback(sockets: TcpSockets, port: u16) -> io::Result<tokio::net::TcpStream> {
    let connect = async |socket: OwnedFd, address: SocketAddr| {
        let socket = tokio::net::TcpSocket::from_std_stream(socket.into());
        tokio::time::timeout(CONNECT, socket.connect(address)).await?
    };
    let v4 = match connect(sockets.v4, (Ipv4Addr::LOCALHOST, port).into()).await {
        Ok(stream) => return Ok(stream),
        Err(error) => error,
    };
    let Some(socket) = sockets.v6 else { return Err(v4) };
    // Where neither listens the better known address explains it best.
    connect(socket, (Ipv6Addr::LOCALHOST, port).into()).await.map_err(|_| v4)
}

/// Opens what tells of the links of each of these network namespaces, by one thread, in order; [`links`] reads it, as
/// often as wanted. An open one keeps its namespace. Shorter than `pins` only if that thread died.
pub fn open_links(pins: Vec<PathBuf>) -> Vec<io::Result<File>> {
    let visit = move || pins.iter().map(|pin| enter_and_open(pin)).collect();
    let thread = std::thread::Builder::new().name("netns".into()).stack_size(256 << 10).spawn(visit);
    match thread {
        Ok(thread) => thread.join().unwrap_or_default(),
        Err(error) => vec![Err(error)],
    }
}

/// How what [`open_links`] opened is to be read.
pub const LINKS: (Shown, usize) = (Shown::ByRecord, 4 << 20);

/// Changes the namespace of the calling thread for good.
fn enter(pin: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let namespace = rustix::fs::open(pin, flags, Mode::empty())?;
    let namespace = std::os::fd::AsFd::as_fd(&namespace);
    Ok(move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))?)
}

fn enter_and_open(pin: &Path) -> io::Result<File> {
    enter(pin)?;
    File::open("/proc/thread-self/net/dev")
}

/// The links, from lines of the form `name: rx_bytes packets errs … tx_bytes packets errs …` (proc_net(5)).
pub fn links(text: &[u8]) -> Vec<LinkStats> {
    let link = |line: &str| {
        let (name, counters) = line.split_once(':')?;
        let mut counts = [0; 12];
        let mut words = counters.split_ascii_whitespace();
        for count in &mut counts {
            *count = words.next()?.parse().ok()?;
        }
        let [rx_bytes, rx_packets, rx_errors, rx_dropped, .., tx_bytes, tx_packets, tx_errors, tx_dropped] =
            counts;
        let name = name.trim().to_string();
        Some(LinkStats {
            name,
            rx_bytes,
            rx_packets,
            rx_errors,
            rx_dropped,
            tx_bytes,
            tx_packets,
            tx_errors,
            tx_dropped,
        })
    };
    String::from_utf8_lossy(text).lines().filter_map(link).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeSet;
    use std::process::{Child, Command};

    use super::*;
    use crate::host::kept::KeptFiles;

    /// A network namespace held by a process, for tests.
    pub(crate) struct Namespace(Child);

    impl Namespace {
        /// `None`, with a message, when this user may not make one.
        #[expect(clippy::disallowed_methods, reason = "a holder of a namespace for tests")]
        pub(crate) fn new() -> Option<Self> {
            if !rustix::process::geteuid().is_root() {
                assert!(std::env::var_os("E2E_REQUIRE").is_none(), "root is required");
                eprintln!("SKIPPED: network namespaces need root");
                return None;
            }
            let child = Command::new("unshare").args(["--net", "sleep", "600"]).spawn().unwrap();
            let namespace = Self(child);
            let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
            while std::fs::read_link(namespace.path()).unwrap() == own {
                std::thread::yield_now();
            }
            Some(namespace)
        }

        pub(crate) fn path(&self) -> PathBuf {
            format!("/proc/{}/ns/net", self.0.id()).into()
        }

        /// Moves the calling thread into it.
        pub(crate) fn enter(&self) {
            let file = std::fs::File::open(self.path()).unwrap();
            move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), Some(LinkNameSpaceType::Network))
                .unwrap();
        }
    }

    /// The links of the network namespace pinned at `pin`.
    pub(crate) fn links_of(pin: &Path) -> Vec<LinkStats> {
        let file = open_links(vec![pin.to_path_buf()]).pop().unwrap();
        links(&KeptFiles::default().read(("", "dev"), LINKS, || file).unwrap())
    }

    impl Drop for Namespace {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn counters_are_taken_by_position() {
        let text = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:       1       2    3    4    5     6          7         8        9      10   11   12   13    14      15         16
  eth0:100 2 0 0 0 0 0 0 200 4 1 0 0 0 0 0
 short: 1 2 3
";
        let link = |name: &str, rx: [u64; 4], tx: [u64; 4]| {
            let (
                [rx_bytes, rx_packets, rx_errors, rx_dropped],
                [tx_bytes, tx_packets, tx_errors, tx_dropped],
            ) = (rx, tx);
            let name = name.into();
            LinkStats {
                name,
                rx_bytes,
                rx_packets,
                rx_errors,
                rx_dropped,
                tx_bytes,
                tx_packets,
                tx_errors,
                tx_dropped,
            }
        };
        let expect =
            [link("lo", [1, 2, 3, 4], [9, 10, 11, 12]), link("eth0", [100, 2, 0, 0], [200, 4, 1, 0])];
        assert_eq!(links(text.as_bytes()), expect);
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a link for a test")]
    fn links_of_another_namespace() {
        let Some(namespace) = Namespace::new() else { return };
        let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let several = open_links(vec!["/nonexistent".into(), namespace.path(), "/proc/self/mounts".into()]);
        assert_eq!(several.iter().map(Result::is_ok).collect::<Vec<_>>(), [false, true, false]);
        let file = several.into_iter().find_map(Result::ok).unwrap();
        let (kept, key) = (KeptFiles::default(), ("", "dev"));
        let look = |file| links(&kept.read(key, LINKS, || file).unwrap());
        let found = look(Ok(file));
        let name = |link: &LinkStats| link.name.clone();
        assert_eq!(found.iter().map(name).collect::<Vec<_>>(), ["lo"]);
        assert_eq!(found[0].rx_bytes, 0);
        assert_eq!(std::fs::read_link("/proc/thread-self/ns/net").unwrap(), own);
        // Kept: what it says now, without entering again.
        std::thread::scope(|scope| {
            let add = || {
                namespace.enter();
                Command::new("ip").args(["link", "add", "more", "type", "bridge"]).status().unwrap().success()
            };
            assert!(scope.spawn(add).join().unwrap());
        });
        let found = look(Err(io::ErrorKind::NotFound.into()));
        assert_eq!(found.iter().map(name).collect::<BTreeSet<_>>(), ["lo", "more"].map(String::from).into());
    }
}
