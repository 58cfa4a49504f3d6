//! `tulle-proxy drain`: tells the proxy of this host to drain, as `POST /drain` does.
//!
//! A pod's `preStop` hook runs it in the proxy's container, where there is no shell and no curl: the loopback listener is for this host only,
//! and the kubelet cannot reach it. Returns once the drain has begun.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use clap::{ArgMatches, Command};

use crate::config::{self, ConfigError};

/// Why the drain has not begun.
#[derive(Debug, thiserror::Error)]
pub enum DrainError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(
        "the proxy has no admin listener (TULLE_PROXY_ADMIN_ADDRESS, TULLE_PROXY_ADMIN_SOCKET); send it SIGTERM"
    )]
    Nowhere,
    #[error("cannot ask the proxy at {at} to drain: {source}")]
    Unreachable { at: String, source: io::Error },
    #[error("the proxy at {at} does not drain: {said}")]
    Refused { at: String, said: String },
}

/// How long the proxy may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Of the answer, the first line is read.
const ENOUGH: u64 = 256;

/// `drain`, with its flags.
pub fn drain_command() -> Command {
    let about = "Tell the proxy of this host to drain: not ready any more, connections are told to end, and those that are open go on";
    config::with_admin_flags(Command::new("drain").about(about))
}

/// Runs what `matches`, of [`drain_command`], ask for.
///
/// # Errors
/// When the proxy cannot be asked, or does not say that it drains.
pub fn drain(
    matches: &ArgMatches,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<(), DrainError> {
    let config = config::admin_from_matches(matches, environment)?;
    let (at, answered) = match (&config.admin_socket, config.admin_address) {
        (Some(path), _) => {
            let connected = UnixStream::connect(path).and_then(|stream| {
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Ok(stream)
            });
            (path.display().to_string(), connected.and_then(ask))
        }
        (None, Some(address)) => {
            let connected = TcpStream::connect_timeout(&address, PATIENCE).and_then(|stream| {
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Ok(stream)
            });
            (address.to_string(), connected.and_then(ask))
        }
        (None, None) => return Err(DrainError::Nowhere),
    };
    match answered {
        Ok(line) if line.split(' ').nth(1) == Some("202") => Ok(()),
        Ok(said) => Err(DrainError::Refused { at, said }),
        Err(source) => Err(DrainError::Unreachable { at, source }),
    }
}

/// The first line of the answer.
fn ask(mut stream: impl Read + Write) -> io::Result<String> {
    stream.write_all(
        b"POST /drain HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
    )?;
    let mut said = Vec::new();
    stream.take(ENOUGH).read_to_end(&mut said)?;
    let line = said.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(line).into_owned())
}
