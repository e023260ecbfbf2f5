//! A node whose commands are a few words.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use crate::error::Error;
use crate::streaming::session::{Attach, Exec, Streams, Target};

/// The node.
#[derive(Default)]
pub struct Node {
    /// Bytes that `yes` has got rid of.
    pub written: AtomicUsize,
    /// `yes` cannot get rid of more.
    pub stalled: Notify,
    /// A command has noticed that its client is gone.
    pub gone: Notify,
}

/// What `yes` writes at once.
static LINE: [u8; 64 << 10] = [b'y'; 64 << 10];

impl Target for Node {
    async fn exec(&self, session: Exec, mut streams: Streams) -> Result<i32, Error> {
        match session.command[0].as_str() {
            "cat" => {
                let (mut stdin, mut stdout) = (streams.stdin.take().unwrap(), streams.stdout.take().unwrap());
                tokio::io::copy(&mut stdin, &mut stdout).await.unwrap();
                Ok(0)
            }
            "exit" => {
                streams.stdout.unwrap().write_all(b"out").await.unwrap();
                streams.stderr.unwrap().write_all(b"err").await.unwrap();
                Ok(session.command[1].parse().unwrap())
            }
            "yes" => {
                self.write_for_ever(streams).await;
                Ok(0)
            }
            "sleep" => {
                streams.gone.cancelled().await;
                self.gone.notify_one();
                Ok(0)
            }
            "sizes" => {
                let mut stdout = streams.stdout.unwrap();
                let report = async {
                    while let Some(size) = streams.resize.recv().await {
                        let line = format!("{}x{} ", size.width, size.height);
                        stdout.write_all(line.as_bytes()).await.unwrap();
                    }
                };
                tokio::select! {
                    () = report => {}
                    () = streams.gone.cancelled() => self.gone.notify_one(),
                }
                Ok(0)
            }
            other => Err(Error::NotFound { kind: "program", id: other.into() }),
        }
    }

    async fn attach(&self, _session: Attach, streams: Streams) -> Result<(), Error> {
        streams.stdout.unwrap().write_all(b"attached").await.unwrap();
        Ok(())
    }

    /// Port 1 is closed; whatever is sent to another one comes back with the port, once the sender is done.
    async fn connect(&self, pod_id: &str, port: u16) -> Result<TcpStream, Error> {
        if port == 1 {
            return Err(Error::NotFound { kind: "port", id: format!("{pod_id}:1") });
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut text = Vec::new();
            socket.read_to_end(&mut text).await.unwrap();
            socket.write_all(format!("{port}:").as_bytes()).await.unwrap();
            socket.write_all(&text).await.unwrap();
        });
        Ok(TcpStream::connect(address).await.unwrap())
    }
}

impl Node {
    async fn write_for_ever(&self, mut streams: Streams) {
        let mut stdout = streams.stdout.take().unwrap();
        loop {
            let write = stdout.write(&LINE);
            let stalled = async {
                tokio::time::sleep(Duration::from_millis(300)).await;
                self.stalled.notify_one();
                std::future::pending::<()>().await;
            };
            tokio::select! {
                biased;
                written = write => match written {
                    Ok(written) => self.written.fetch_add(written, Ordering::Relaxed),
                    Err(_gone) => break,
                },
                () = stalled => break,
            };
        }
        streams.gone.cancelled().await;
        self.gone.notify_one();
    }
}
