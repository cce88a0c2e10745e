/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The processes that touch devices, behind one small protocol.
//!
//! Each worker takes the same steps: connect to the main process, open its one device, lock itself down, serve. It ends
//! when its channel closes, and with the main process.

#![deny(unsafe_code)]

pub mod doctor;
mod encoding;
pub mod key_protocol;
pub mod key_provider;
pub mod padding;
mod pcsc_monitor;
mod pcsc_reader;
mod pkcs11;
#[expect(
    unsafe_code,
    reason = "closes file descriptors that no Rust object owns"
)]
pub mod process;
pub mod protocol;
pub mod sandbox;
mod serve;
mod tpm;
mod virtual_reader;

use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::{env, io};

use token_traits::Frame;
use token_traits::control::{ModuleConfig, WorkerKind};

use crate::key_protocol::KeyError;
use crate::key_provider::KeyProvider as _;
use crate::process::Channels;
use crate::sandbox::Kind;
use crate::serve::Device;

/// Which worker the command line asks for. The [`WorkerKind`] with its details comes as the first frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Program {
    /// [`WorkerKind::VirtualCard`].
    VirtualCard,
    /// [`WorkerKind::PcscMonitor`].
    PcscMonitor,
    /// [`WorkerKind::PcscReader`].
    PcscReader,
    /// [`WorkerKind::Module`].
    Module,
    /// [`WorkerKind::Tpm`].
    Tpm,
}

/// Runs a worker to its end. `token` names the main process's one-shot server.
pub fn run(program: Program, token: String) -> ExitCode {
    let connected = process::connect::<Frame, Frame>(token);
    let channels = match connected.and_then(process::Connection::report) {
        Ok(channels) => channels,
        Err(error) => {
            log::error!("cannot reach the main process: {error}");
            return ExitCode::FAILURE;
        }
    };
    // The main process can also go away before it has said what this worker is for.
    let Ok(frame) = channels.requests.recv() else {
        return ExitCode::SUCCESS;
    };
    let kind = match frame.decode() {
        Ok(kind) => kind,
        Err(error) => {
            log::error!("the main process did not say what to do: {error}");
            return ExitCode::FAILURE;
        }
    };
    match (program, kind) {
        (Program::VirtualCard, WorkerKind::VirtualCard { profile }) => {
            let device = virtual_reader::VirtualReader::open(&profile);
            serve(Kind::VirtualCard, channels, device)
        }
        (Program::PcscReader, WorkerKind::PcscReader { reader }) => {
            let device = pcsc_reader::PcscReader::open(&reader);
            serve(Kind::PcscReader, channels, device)
        }
        (Program::PcscMonitor, WorkerKind::PcscMonitor) => pcsc_monitor::run(channels),
        (Program::Module, WorkerKind::Module(module)) => run_module(&module, channels),
        (Program::Tpm, WorkerKind::Tpm { tcti }) => run_tpm(&tcti, channels),
        (program, kind) => {
            log::error!("started as {program:?}, but asked to be {kind:?}");
            ExitCode::FAILURE
        }
    }
}

fn serve<D: Device, E: std::fmt::Display>(
    kind: Kind<'_>,
    channels: Channels<Frame, Frame>,
    device: Result<D, E>,
) -> ExitCode {
    let mut device = match device {
        Ok(device) => device,
        Err(error) => {
            log::error!("cannot open the device: {error}");
            return ExitCode::FAILURE;
        }
    };
    if let Err(code) = lock_down(kind, channels.lifeline, || Ok(())) {
        return code;
    }
    serve::serve(&mut device, &channels.requests, &channels.replies);
    ExitCode::SUCCESS
}

/// Most tokens of one worker at which something is done at the same time.
const LANES: usize = 8;

/// A module is not trusted: it is loaded when everything is locked down.
fn run_module(module: &ModuleConfig, channels: Channels<Frame, Frame>) -> ExitCode {
    let Channels {
        requests,
        replies,
        lifeline,
    } = channels;
    let failed = |error: &dyn std::fmt::Display| {
        log::error!("{error}");
        ExitCode::FAILURE
    };
    if module.pcsc
        && let Err(error) = connect_to_pcsc()
    {
        log::warn!("the PC/SC service cannot be reached, so the module has no readers: {error}");
    }
    if let Err(error) = sandbox::lock_down(Kind::Module(module)) {
        return failed(&format_args!("sandbox: {error}"));
    }
    if let Err(error) = lifeline.watch() {
        return failed(&format_args!("thread: {error}"));
    }
    let provider = match pkcs11::Module::load(&module.module, module.pcsc) {
        Ok(provider) => provider,
        Err(error) => return failed(&error),
    };
    if let Err(error) = sandbox::no_more_code() {
        return failed(&format_args!("sandbox: {error}"));
    }
    match key_provider::start(provider, LANES, replies) {
        Ok(server) => server.serve(&requests),
        Err(error) => return failed(&format_args!("thread: {error}")),
    }
    // The module's own code at the end of a process may hang or crash, and has nothing to do that matters.
    process::end()
}

/// Makes the connection to the PC/SC service that a module gets, as descriptor 0: [`sandbox::table::PRETENDED`].
fn connect_to_pcsc() -> io::Result<()> {
    let path = env::var_os("PCSCLITE_CSOCK_NAME");
    let path = path.unwrap_or_else(|| "/run/pcscd/pcscd.comm".into());
    let connection = UnixStream::connect(path)?;
    Ok(rustix::stdio::dup2_stdin(connection)?)
}

/// Loads a PKCS#11 module as its worker does, inside the sandbox, and says which tokens it has. This process is of no other
/// use then.
///
/// # Errors
/// With a sentence for the user.
pub fn try_module(module: &ModuleConfig) -> Result<Vec<String>, String> {
    if module.pcsc {
        connect_to_pcsc().map_err(|error| format!("the PC/SC service: {error}"))?;
    }
    sandbox::lock_down(Kind::Module(module)).map_err(|error| format!("sandbox: {error}"))?;
    let provider = pkcs11::Module::load(&module.module, module.pcsc)?;
    sandbox::no_more_code().map_err(|error| format!("sandbox: {error}"))?;
    let tokens = provider.tokens().map_err(|error| error.to_string())?;
    let describe = |token: key_protocol::TokenInfo| {
        let (label, manufacturer, serial) = (token.label, token.manufacturer, token.serial);
        format!("{label} ({manufacturer}, {serial})")
    };
    Ok(tokens.into_iter().map(describe).collect())
}

/// Fills something with random bytes of the kernel's.
fn random(bytes: &mut [u8]) -> Result<(), KeyError> {
    let mut filled = 0;
    while filled < bytes.len() {
        let rest = &mut bytes[filled..];
        filled += rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty())
            .map_err(|_| KeyError::Failed)?;
    }
    Ok(())
}

/// The TPM is opened before the lock-down, and nothing after it.
fn run_tpm(tcti: &str, channels: Channels<Frame, Frame>) -> ExitCode {
    let Channels {
        requests,
        replies,
        lifeline,
    } = channels;
    let provider = match tpm::Tpm::open(tcti) {
        Ok(provider) => provider,
        Err(error) => {
            log::error!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let mut server = None;
    let port = tpm::port_of_swtpm(tcti);
    let locked = lock_down(Kind::Tpm { port }, lifeline, || {
        server = Some(key_provider::start(provider, 1, replies)?);
        Ok(())
    });
    if let Err(code) = locked {
        return code;
    }
    if let Some(server) = server {
        server.serve(&requests);
    }
    process::end()
}

/// Locks this process down, and starts its threads: the lifeline's, and what `start` starts.
fn lock_down(
    kind: Kind<'_>,
    lifeline: process::Lifeline,
    start: impl FnOnce() -> io::Result<()>,
) -> Result<(), ExitCode> {
    let sandbox_error = |error| {
        log::error!("sandbox: {error}");
        ExitCode::FAILURE
    };
    sandbox::lock_down(kind).map_err(sandbox_error)?;
    lifeline.watch().and_then(|()| start()).map_err(|error| {
        log::error!("thread: {error}");
        ExitCode::FAILURE
    })?;
    sandbox::no_more_threads().map_err(sandbox_error)
}
