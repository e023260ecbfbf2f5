//! A terminal with somebody in front of it: what a program shows is collected, keys are typed, the window resized.

use std::fs::File;
use std::io::{Read, Write};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::wait;

/// How long a program may take to show something.
const PATIENCE: Duration = Duration::from_secs(60);

/// The side of the person.
#[derive(Debug)]
pub struct Terminal {
    master: File,
    shown: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    /// A terminal of that many rows and columns, and the side of the program.
    pub fn open(rows: u16, columns: u16) -> Result<(Self, File)> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let name = ptsname(&master, Vec::new())?;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let program = rustix::fs::open(&name, flags, Mode::empty()).context("open the terminal")?;
        let terminal = Self { master: master.into(), shown: Arc::default() };
        terminal.resize(rows, columns)?;
        let (mut screen, shown) = (terminal.master.try_clone()?, terminal.shown.clone());
        // Ends with the last program that has the terminal open.
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(length @ 1..) = screen.read(&mut chunk) {
                shown.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&chunk[..length]);
            }
        });
        Ok((terminal, program.into()))
    }

    /// The program's side as its three standard descriptors.
    pub fn stdio(program: &File) -> Result<[Stdio; 3]> {
        Ok([program.try_clone()?.into(), program.try_clone()?.into(), program.try_clone()?.into()])
    }

    /// Types.
    pub fn enter(&self, keys: &str) -> Result<()> {
        (&self.master).write_all(keys.as_bytes()).context("type")
    }

    /// Changes the size. The program hears of it by SIGWINCH only if the terminal is its own.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.master, size).context("resize the terminal")
    }

    /// Waits until the program has shown `text`, and forgets everything up to there.
    pub fn expect(&self, text: &str) -> Result<()> {
        wait::until(&format!("{text:?} on the terminal"), PATIENCE, || {
            let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
            let at = shown.windows(text.len()).position(|window| window == text.as_bytes());
            ensure!(at.is_some(), "it shows {:?}", String::from_utf8_lossy(&shown));
            shown.drain(..at.unwrap_or_default() + text.len());
            Ok(())
        })
    }
}
