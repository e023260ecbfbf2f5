//! `cri-server image`: what an administrator does with images. Everything goes through the daemon, which owns them.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::Subcommand;

use super::bars::{Bars, Part, size};
use crate::config::Config;
use crate::service::client::Client;

/// Subcommands of `cri-server image`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Pull an image from its registry
    Pull {
        /// Name of the image
        name: String,
        /// User name for the registry; the password is read from standard input
        #[arg(long, value_name = "NAME")]
        username: Option<String>,
    },
    /// List images
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove images, each with all its names
    Rm {
        /// Names, digests or ids
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Take images from an OCI layout or docker archive
    Import {
        /// The archive (tar); `-` reads standard input
        file: PathBuf,
    },
    /// Write an image as an archive that is both an OCI layout and a docker archive
    Export {
        /// Name, digest or id
        name: String,
        /// The archive to write; `-` writes standard output
        file: PathBuf,
    },
}

/// Runs a subcommand.
pub fn run(command: Command, config: &Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut client = Client::connect(&config.socket)
            .await
            .with_context(|| format!("connect to the daemon at {}", config.socket.display()))?;
        match command {
            Command::Pull { name, username } => pull(&mut client, name, username).await,
            Command::Ls { json } => list(&mut client, json).await,
            Command::Rm { names } => remove(&mut client, names).await,
            Command::Import { file } => import(&mut client, &file).await,
            Command::Export { name, file } => export(&mut client, name, &file).await,
        }
    })
}

async fn pull(client: &mut Client, name: String, username: Option<String>) -> anyhow::Result<()> {
    let password = match username {
        None => String::new(),
        Some(_) => {
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).context("read the password")?;
            line.trim_end_matches(['\r', '\n']).to_string()
        }
    };
    let mut bars = Bars::new();
    let show = |progress: &proto::admin::PullImageProgress| {
        let part = |layer: &proto::admin::pull_image_progress::Layer| Part {
            name: short(&layer.digest),
            done: layer.done,
            total: layer.total,
        };
        bars.show(&progress.layers.iter().map(part).collect::<Vec<_>>())
    };
    let id = client.pull(name, username.unwrap_or_default(), password, show).await?;
    writeln!(std::io::stdout(), "{id}")?;
    Ok(())
}

async fn list(client: &mut Client, json: bool) -> anyhow::Result<()> {
    let images = client.list().await?;
    let mut out = std::io::stdout().lock();
    if json {
        let image = |image: &proto::cri::Image| {
            serde_json::json!({
                "id": image.id, "tags": image.repo_tags, "digests": image.repo_digests,
                "size": image.size, "pinned": image.pinned,
            })
        };
        let images: Vec<_> = images.iter().map(image).collect();
        writeln!(out, "{}", serde_json::to_string_pretty(&images)?)?;
        return Ok(());
    }
    let names = |image: &proto::cri::Image| match image.repo_tags.is_empty() {
        true => image.repo_digests.clone(),
        false => image.repo_tags.clone(),
    };
    let width = images.iter().flat_map(names).map(|name| name.len()).max().unwrap_or(0).max("NAME".len());
    writeln!(out, "{:width$}  {:13}  SIZE", "NAME", "ID")?;
    for image in &images {
        for name in names(image) {
            writeln!(out, "{name:width$}  {:13}  {}", short(&image.id), size(image.size))?;
        }
    }
    Ok(())
}

async fn remove(client: &mut Client, names: Vec<String>) -> anyhow::Result<()> {
    for name in names {
        client.remove(name.clone()).await.with_context(|| format!("remove {name}"))?;
    }
    Ok(())
}

async fn import(client: &mut Client, file: &std::path::Path) -> anyhow::Result<()> {
    let path = if file.as_os_str() == "-" { std::path::Path::new("/dev/stdin") } else { file };
    let reader = tokio::fs::File::open(path).await.with_context(|| format!("open {}", path.display()))?;
    let total = std::fs::metadata(file).map(|metadata| metadata.len()).unwrap_or(0);
    let mut bars = Bars::new();
    let name = file.display().to_string();
    let show = move |done: u64| bars.show(&[Part { name: name.clone(), done, total: total.max(done) }]);
    for image in client.import(reader, show).await? {
        writeln!(std::io::stdout(), "{}  {}", image.id, image.names.join(" "))?;
    }
    Ok(())
}

async fn export(client: &mut Client, name: String, file: &std::path::Path) -> anyhow::Result<()> {
    if file.as_os_str() == "-" {
        client.export(name, &mut std::io::stdout().lock()).await?;
        return Ok(());
    }
    // Written beside and renamed: no half archive under the name that was asked for.
    let mut partial = file.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let mut out = std::fs::File::create(&partial).with_context(|| format!("create {}", partial.display()))?;
    let written = client.export(name, &mut out).await;
    match written {
        Ok(()) => std::fs::rename(&partial, file).with_context(|| format!("rename to {}", file.display())),
        Err(error) => {
            std::fs::remove_file(&partial).with_context(|| format!("remove {}", partial.display()))?;
            Err(error)
        }
    }
}

/// The beginning of a digest: what people compare.
fn short(digest: &str) -> String {
    digest.trim_start_matches("sha256:").chars().take(13).collect()
}
