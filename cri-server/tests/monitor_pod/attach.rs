//! Attach: copies of output for any number of clients, input that stays or ends, and clients that do not read.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use cri_server::host::monitor::{Attach, Attached, Event, FailureKind, Monitor, MonitorError};

use crate::ground::{PATIENCE, Plan, exit_of, next, until, with_each_runtime, with_one_runtime};

/// A client with both outputs.
struct Client {
    stdout: UnixStream,
    stderr: UnixStream,
}

/// A client with room for all that a test prints: one that is slow to be scheduled is not slow to read.
const ROOMY: &str = "roomy";

/// Attaches with everything that there is.
async fn attach(monitor: &Monitor, plan: &Plan, name: &str) -> Result<(Client, Attached), MonitorError> {
    let ((stdout, far_stdout), (stderr, far_stderr)) =
        (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
    for near in [&stdout, &stderr] {
        near.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    if name == ROOMY {
        rustix::net::sockopt::set_socket_send_buffer_size_force(&far_stdout, 8 << 20).unwrap();
    }
    let attach = Attach {
        attach_id: name.into(),
        container_id: plan.id().into(),
        terminal: plan.spec.terminal,
        stdin: true,
        stdout: Some(far_stdout.into()),
        stderr: Some(far_stderr.into()),
    };
    let attached = monitor.attach_to(attach).await?;
    Ok((Client { stdout, stderr }, attached))
}

/// Reads until `text` has come.
fn expect(stream: &mut UnixStream, text: &str) {
    let mut seen = String::new();
    while !seen.contains(text) {
        let mut chunk = [0; 4096];
        let length = stream.read(&mut chunk).unwrap();
        assert!(length > 0, "ended before {text:?}: {seen:?}");
        seen.push_str(&String::from_utf8_lossy(&chunk[..length]));
    }
}

fn rest(stream: &mut UnixStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn pipe(attached: Attached) -> Option<std::fs::File> {
    match attached {
        Attached::Pipes(stdin) => stdin.map(std::fs::File::from),
        Attached::Terminal { .. } => panic!("the container has no terminal"),
    }
}

fn descriptors(monitor: &Monitor) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", monitor.welcome().monitor_pid)).unwrap().count()
}

const ECHO: &str = "while read line; do echo out $line; echo err $line >&2; done; echo end";

#[test]
fn every_client_gets_a_copy_and_input_stays_open() {
    with_each_runtime(async |ground, runtime| {
        let monitor = ground.monitor().await;
        let mut events = monitor.events();
        let mut plan = ground.plan(runtime, ECHO);
        plan.spec.stdin = true;
        plan.create(&monitor).await;
        monitor.start(plan.id()).await.unwrap();
        let before = descriptors(&monitor);
        let (mut first, attached) = attach(&monitor, &plan, "first").await.unwrap();
        let mut stdin = pipe(attached).unwrap();
        stdin.write_all(b"one\n").unwrap();
        expect(&mut first.stdout, "out one\n");
        expect(&mut first.stderr, "err one\n");
        let (mut second, attached) = attach(&monitor, &plan, "second").await.unwrap();
        drop(stdin);
        let mut stdin = pipe(attached).unwrap();
        stdin.write_all(b"two\n").unwrap();
        for client in [&mut first, &mut second] {
            expect(&mut client.stdout, "out two\n");
            expect(&mut client.stderr, "err two\n");
        }
        drop(first);
        drop(stdin);
        let (third, _) = attach(&monitor, &plan, "third").await.unwrap();
        drop(third);
        until("the gone clients to be forgotten", || descriptors(&monitor) <= before + 2).await;
        monitor
            .signal(cri_server::host::monitor::Target::Container(plan.id().into()), libc::SIGKILL)
            .await
            .unwrap();
        exit_of(&mut events, plan.id()).await;
        assert_eq!((rest(&mut second.stdout), rest(&mut second.stderr)), Default::default());
        assert_eq!(plan.lines().iter().filter(|line| line.starts_with("stdout")).count(), 2);
        monitor.shutdown().await.unwrap();
    });
}

#[test]
fn input_that_is_given_once_ends_with_the_first_client() {
    with_one_runtime(async |ground, runtime| {
        let monitor = ground.monitor().await;
        let mut events = monitor.events();
        let mut plan = ground.plan(runtime, ECHO);
        (plan.spec.stdin, plan.spec.stdin_once) = (true, true);
        plan.create(&monitor).await;
        monitor.start(plan.id()).await.unwrap();
        let (mut first, attached) = attach(&monitor, &plan, "first").await.unwrap();
        let mut stdin = pipe(attached).unwrap();
        let (_second, attached) = attach(&monitor, &plan, "second").await.unwrap();
        assert!(pipe(attached).is_none());
        stdin.write_all(b"one\n").unwrap();
        drop(stdin);
        assert_eq!(rest(&mut first.stdout), "out one\nend\n");
        assert_eq!(exit_of(&mut events, plan.id()).await.exit_code, 0);
        monitor.shutdown().await.unwrap();
    });
}

#[test]
fn a_container_without_input_has_none_to_give() {
    with_one_runtime(async |ground, runtime| {
        let monitor = ground.monitor().await;
        let mut events = monitor.events();
        let plan = ground.run(&monitor, runtime, "sleep 1000").await;
        let (_client, attached) = attach(&monitor, &plan, "client").await.unwrap();
        assert!(pipe(attached).is_none());
        monitor
            .signal(cri_server::host::monitor::Target::Container(plan.id().into()), libc::SIGKILL)
            .await
            .unwrap();
        exit_of(&mut events, plan.id()).await;
        let error = attach(&monitor, &plan, "late").await.err().unwrap();
        assert!(
            matches!(&error, MonitorError::Refused { failure, .. } if failure.kind == FailureKind::FailedPrecondition),
            "{error:?}"
        );
        monitor.shutdown().await.unwrap();
    });
}

#[test]
fn a_client_that_does_not_read_holds_nobody_up() {
    with_one_runtime(async |ground, runtime| {
        let monitor = ground.monitor().await;
        let mut events = monitor.events();
        let mut plan = ground.plan(runtime, "read go; seq 300000; echo end");
        plan.spec.stdin = true;
        plan.create(&monitor).await;
        monitor.start(plan.id()).await.unwrap();
        let (mut slow, attached) = attach(&monitor, &plan, "slow").await.unwrap();
        let (mut quick, _) = attach(&monitor, &plan, ROOMY).await.unwrap();
        let reader = std::thread::spawn(move || rest(&mut quick.stdout));
        pipe(attached).unwrap().write_all(b"go\n").unwrap();
        let detached = async {
            loop {
                if let Event::Detached { attach_id } = next(&mut events).await {
                    return attach_id;
                }
            }
        };
        assert_eq!(detached.await, "slow");
        assert_eq!(exit_of(&mut events, plan.id()).await.exit_code, 0);
        let all = reader.join().unwrap();
        assert!(all.ends_with("\n300000\nend\n"), "{} bytes", all.len());
        assert_eq!(plan.lines().len(), 300_001);
        let part = rest(&mut slow.stdout);
        assert!(!part.is_empty() && all.starts_with(&part));
        assert_eq!(rest(&mut slow.stderr), "");
        monitor.shutdown().await.unwrap();
    });
}

#[test]
fn a_terminal_is_written_to_and_resized() {
    with_each_runtime(async |ground, runtime| {
        let monitor = ground.monitor().await;
        let mut events = monitor.events();
        let mut plan = ground.plan(runtime, "while read line; do busybox stty size; done");
        (plan.spec.terminal, plan.spec.stdin) = (true, true);
        plan.set("/process/terminal", true.into());
        plan.create(&monitor).await;
        monitor.start(plan.id()).await.unwrap();
        let (mut client, attached) = attach(&monitor, &plan, "client").await.unwrap();
        let Attached::Terminal { master, writable: true } = attached else { panic!("{attached:?}") };
        assert_eq!(rest(&mut client.stderr), "");
        resize(&master, 33, 101);
        let mut keyboard = std::fs::File::from(master);
        keyboard.write_all(b"\r").unwrap();
        expect(&mut client.stdout, "33 101\r\n");
        keyboard.write_all(b"\x04").unwrap();
        assert_eq!(exit_of(&mut events, plan.id()).await.exit_code, 0);
        rest(&mut client.stdout);
        assert!(plan.lines().contains(&"stdout F 33 101".to_owned()), "{:?}", plan.lines());
        monitor.shutdown().await.unwrap();
    });
}

fn resize(master: &OwnedFd, rows: u16, columns: u16) {
    let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(master, size).unwrap();
}
