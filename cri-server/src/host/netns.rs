//! Network namespaces of pods, seen from outside. A namespace may have no process: a thread of its own enters it.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::fs::read_bounded;

const LIMIT: u64 = 4 << 20;
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

/// The links of the network namespace pinned at `pin`. Blocks for less than a millisecond.
pub fn link_stats(pin: &Path) -> io::Result<Vec<LinkStats>> {
    let mut all = link_stats_of(vec![pin.to_path_buf()]);
    all.pop().unwrap_or_else(|| Err(io::Error::other("the thread for network namespaces died")))
}

/// The links of several network namespaces, in order, by one thread; shorter than `pins` only if that thread died.
pub fn link_stats_of(pins: Vec<PathBuf>) -> Vec<io::Result<Vec<LinkStats>>> {
    let visit = move || pins.iter().map(|pin| enter_and_read(pin)).collect();
    let thread = std::thread::Builder::new().name("netns".into()).stack_size(256 << 10).spawn(visit);
    match thread {
        Ok(thread) => thread.join().unwrap_or_default(),
        Err(error) => vec![Err(error)],
    }
}

/// Changes the namespace of the calling thread for good.
fn enter(pin: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let namespace = rustix::fs::open(pin, flags, Mode::empty())?;
    let namespace = std::os::fd::AsFd::as_fd(&namespace);
    Ok(move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))?)
}

fn enter_and_read(pin: &Path) -> io::Result<Vec<LinkStats>> {
    enter(pin)?;
    let text = read_bounded(std::fs::File::open("/proc/thread-self/net/dev")?, LIMIT)?;
    Ok(parse(&String::from_utf8_lossy(&text)))
}

/// Lines of the form `name: rx_bytes packets errs … tx_bytes packets errs …` (proc_net(5)).
fn parse(text: &str) -> Vec<LinkStats> {
    let link = |line: &str| {
        let (name, counters) = line.split_once(':')?;
        let counters: Vec<u64> = counters.split_whitespace().map_while(|text| text.parse().ok()).collect();
        let get = |index: usize| counters.get(index).copied();
        Some(LinkStats {
            name: name.trim().to_string(),
            rx_bytes: get(0)?,
            rx_packets: get(1)?,
            rx_errors: get(2)?,
            rx_dropped: get(3)?,
            tx_bytes: get(8)?,
            tx_packets: get(9)?,
            tx_errors: get(10)?,
            tx_dropped: get(11)?,
        })
    };
    text.lines().filter_map(link).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::process::{Child, Command};

    use super::*;

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
        assert_eq!(parse(text), expect);
    }

    #[test]
    fn links_of_another_namespace() {
        let Some(namespace) = Namespace::new() else { return };
        let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let links = link_stats(&namespace.path()).unwrap();
        let name = |link: &LinkStats| link.name.clone();
        assert_eq!(links.iter().map(name).collect::<Vec<_>>(), ["lo"]);
        assert_eq!(links[0].rx_bytes, 0);
        assert_eq!(std::fs::read_link("/proc/thread-self/ns/net").unwrap(), own);
        let several =
            link_stats_of(vec!["/nonexistent".into(), namespace.path(), "/proc/self/mounts".into()]);
        assert_eq!(several.iter().map(Result::is_ok).collect::<Vec<_>>(), [false, true, false]);
    }
}
