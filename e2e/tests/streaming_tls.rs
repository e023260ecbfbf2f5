//! Exec, attach and port-forward over TLS: by crictl, which verifies the certificate, and by clients that never get
//! through the handshake.

use std::io::Write;
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::case::Case;
use e2e::cri::container;
use e2e::daemon::{Endpoint, Setup};
use e2e::image::set::BUSYBOX;
use e2e::streams::{Attached, connect, crictl, finish, piped, reverse};
use e2e::{tls, wait};
use proto::cri as api;

const PATIENCE: Duration = Duration::from_secs(60);
/// Both protocols that crictl speaks.
const TRANSPORTS: [&str; 2] = ["spdy", "websocket"];

/// A case whose streaming server speaks TLS, and the options by which crictl verifies it. It wants a certificate of its
/// own with them, which the server does not ask for.
async fn open(test: &str) -> Result<Option<(Case, String)>> {
    let Some(mut case) = Case::open(test, Setup::of(Endpoint::Berth)).await? else { return Ok(None) };
    let files = tls::secure_streams(&mut case.node)?;
    case.cri = case.node.cri().await?;
    case.accept_present_state()?;
    let tls::Files { certificate, key } = files;
    let (certificate, key) = (certificate.display(), key.display());
    Ok(Some((case, format!("--tls-ca {certificate} --tls-cert {certificate} --tls-key {key}"))))
}

#[tokio::test(flavor = "multi_thread")]
async fn crictl_streams_over_tls() -> Result<()> {
    let Some((case, options)) = open("crictl_streams_over_tls").await? else { return Ok(()) };
    let pod = case.cri.pod("secured");
    let pod_id = case.cri.run_pod(&pod).await?;
    let mut config =
        container("echo", BUSYBOX, &["sh", "-c", "while read line; do echo out $line; done; sleep 100000"]);
    config.stdin = true;
    let id = case.cri.launch(&pod_id, &config, &pod).await?;
    let pid = *case.node.ancestry().of_pod(&pod_id)?.first().context("the pod has no process")? as u32;
    reverse(pid, Ipv4Addr::LOCALHOST.into(), 7000)?;
    let rest = case.node.settled_snapshot()?;
    for (transport, port) in TRANSPORTS.into_iter().zip([7100, 7200]) {
        let with = format!("{options} -r {transport}");
        let exec = crictl(&case, &format!("exec {with} -i {id} sh -c"))?.arg("wc -c; echo end >&2; exit 7");
        let (code, stdout, stderr) = piped(&exec, &[b'x'; 3_000_000])?;
        ensure!(code != 0 && stdout == "3000000\n", "{transport}: {code} {stdout:?} {stderr:?}");
        ensure!(stderr.contains("end\n") && stderr.contains("exit code 7"), "{transport}: {stderr:?}");

        let mut attached = Attached::start(&crictl(&case, &format!("attach {with} -i {id}"))?)?;
        attached.enter(&format!("{transport}\n"))?;
        attached.expect(&format!("out {transport}"))?;
        drop(attached);

        let log = case.node.dirs().top().join(format!("forward-{transport}.log"));
        let forward = crictl(&case, &format!("port-forward {with} {pod_id} {port}:7000"))?.start(&log)?;
        let stream = wait::until("the forward", PATIENCE, || connect(&case, port))?;
        let message: Vec<u8> = (0..1 << 20).map(|number: u32| (number % 251) as u8).collect();
        let answer = finish(stream, &message)?;
        ensure!(answer.iter().eq(message.iter().rev()), "{transport}: {} bytes", answer.len());
        drop(forward);

        let misled = crictl(&case, &format!("exec {with} --tls-sni elsewhere {id} true"))?.run()?;
        ensure!(!misled.status.success(), "{transport}: another name is believed");
        ensure!(misled.stderr.contains("elsewhere"), "{transport}: {}", misled.stderr);
    }
    case.node.expect_no_leaks(&rest)?;
    case.cri.end_pod(&pod_id).await?;
    case.close()
}

/// Connections that are open at once.
const CROWD: usize = 100;

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_never_greet_leave_nothing() -> Result<()> {
    let Some((case, options)) = open("clients_that_never_greet_leave_nothing").await? else {
        return Ok(());
    };
    let (pod_id, id) = case.sleeper(&case.cri.pod("flooded")).await?;
    let port = streaming_port(&case, &id).await?;
    let rest = case.node.settled_snapshot()?;
    let records = [
        &b""[..],
        b"GET /exec/none HTTP/1.1\r\nHost: plain\r\n\r\n",
        // A record of a handshake that promises more than comes, one that no version has, and one of no kind.
        &[0x16, 3, 1, 0x40, 0, 1, 0, 0],
        &[0x16, 9, 9, 0, 1, 0],
        &[0xff; 64 << 10],
    ];
    for bytes in records {
        let mut crowd = Vec::new();
        for _ in 0..CROWD {
            let mut stream = connect(&case, port)?;
            // It may have closed already.
            let _refused = stream.write_all(bytes);
            crowd.push(stream);
        }
        let printed = crictl(&case, &format!("exec {options} {id} echo served"))?.ok()?;
        ensure!(printed == "served\n", "{printed:?}");
        crowd.iter().try_for_each(abort)?;
    }
    case.node.expect_no_leaks(&rest)?;
    case.cri.end_pod(&pod_id).await?;
    case.close()
}

/// Where the streaming server listens.
async fn streaming_port(case: &Case, id: &str) -> Result<u16> {
    let request = api::AttachRequest { container_id: id.to_owned(), stdout: true, ..Default::default() };
    let url = case.cri.runtime.clone().attach(request).await?.into_inner().url;
    let address = url.strip_prefix("https://").with_context(|| format!("{url} is not secured"))?;
    let address = address.split('/').next().unwrap_or_default();
    Ok(address.rsplit_once(':').with_context(|| format!("{url} has no port"))?.1.parse()?)
}

/// Ends the connection without a word of goodbye when it is dropped.
fn abort(stream: &TcpStream) -> Result<()> {
    Ok(rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO))?)
}
