//! `cri-server serve`: the daemon's life.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::config::{Config, LogFormat};
use crate::daemon::Daemon;
use crate::host::fs::create_open_directories;
use crate::steps::streams::Node;
use crate::steps::{labels, rules};
use crate::streaming::Streaming;
use crate::{recover, service};

/// How long calls in flight may take to end when the daemon is to stop.
const LAST_CALLS: Duration = Duration::from_secs(5);
/// How often the service manager hears of a start that takes long.
const START_NEWS: Duration = Duration::from_secs(10);
/// How long a thread for blocking work waits for more: a kubelet's question of every second finds it still there, and
/// what a burst has made is gone soon after.
const IDLE_THREAD: Duration = Duration::from_secs(2);

/// Serves until SIGTERM or SIGINT; containers go on.
pub fn serve(config: Config) -> anyhow::Result<()> {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    start_log(&config)?;
    crate::host::limits::apply();
    // The default certificate verifier of every registry connection; failing means that one is installed already.
    let _installed = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_keep_alive(IDLE_THREAD)
        .enable_all()
        .build()
        .context("start the runtime")?;
    let outcome = runtime.block_on(run(config));
    // What blocks is not waited for.
    runtime.shutdown_background();
    outcome
}

async fn run(config: Config) -> anyhow::Result<()> {
    let started = std::time::Instant::now();
    let mut terminate = signal(SignalKind::terminate()).context("watch SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watch SIGINT")?;
    let socket = config.socket.clone();
    let gid = config.socket_gid;
    let daemon = Arc::new(Daemon::start(config)?);
    take_time(labels::label_layers(&daemon)).await;
    take_time(recover::recover(&daemon)).await?;
    rules::keep(daemon.clone());
    let streaming = Streaming::start(&daemon.config.streaming, Arc::new(Node::new(daemon.clone())))?;
    let listener = listen(&socket, gid)?;
    tracing::info!(
        socket = %socket.display(),
        pods = daemon.sandboxes.len(),
        containers = daemon.containers.len(),
        micros = started.elapsed().as_micros() as u64,
        "serving"
    );
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
    let events = daemon.clone();
    let (stopping, stopped) = tokio::sync::oneshot::channel();
    let stop = async move {
        tokio::select! {
            _terminate = terminate.recv() => {}
            _interrupt = interrupt.recv() => {}
        }
        tracing::info!("stopping; containers go on");
        // Their streams would be waited for.
        events.events.close();
        let _nobody_waits = stopping.send(());
    };
    let served = tokio::select! {
        served = service::serve(daemon, streaming, listener, stop) => served,
        // What goes on then is given up as by a kill: the next start finds it.
        () = overdue(stopped) => Ok(()),
    };
    if let Err(error) = std::fs::remove_file(&socket) {
        tracing::warn!(socket = %socket.display(), %error, "the socket stays");
    }
    served.context("serve the CRI")
}

/// Resolves when calls in flight have had their time to end after a signal to stop.
async fn overdue(stopped: tokio::sync::oneshot::Receiver<()>) {
    if stopped.await.is_err() {
        return std::future::pending().await;
    }
    tokio::time::sleep(LAST_CALLS).await;
    tracing::warn!("calls are still in flight: they are cut off");
}

/// Does work before the daemon serves, and tells the service manager that it goes on: what cannot be killed takes long
/// to be given up, and a start that is cut off begins anew.
async fn take_time<T>(work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        match tokio::time::timeout(START_NEWS, &mut work).await {
            Ok(done) => return done,
            Err(_) => {
                let more = sd_notify::NotifyState::ExtendTimeoutUsec(4 * START_NEWS.as_micros() as u32);
                if let Err(error) = sd_notify::notify(&[more]) {
                    tracing::warn!(%error, "the service manager cannot be told");
                }
            }
        }
    }
}

/// Binds the socket; its group may use it too. The caller holds the daemon's lock, so a file there is stale.
fn listen(socket: &Path, gid: Option<u32>) -> anyhow::Result<UnixListener> {
    let parent = socket.parent().context("the socket has no directory")?;
    create_open_directories(parent).with_context(|| format!("make {}", parent.display()))?;
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove the stale socket {}", socket.display()));
        }
        _removed => {}
    }
    let listener = UnixListener::bind(socket).with_context(|| format!("listen on {}", socket.display()))?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o660))
        .with_context(|| format!("set the mode of {}", socket.display()))?;
    std::os::unix::fs::chown(socket, Some(0), Some(gid.unwrap_or(0)))
        .with_context(|| format!("set the group of {}", socket.display()))?;
    Ok(listener)
}

fn start_log(config: &Config) -> anyhow::Result<()> {
    // A plain level is meant for this program, not for every library in it.
    let level = config.log_level.as_str();
    let plain = level.parse::<tracing::Level>().is_ok();
    let directives = if plain { format!("warn,cri_server={level}") } else { level.to_string() };
    let filter = EnvFilter::try_new(directives)
        .with_context(|| format!("configuration key `log_level`: {:?}", config.log_level))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.log_format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}
