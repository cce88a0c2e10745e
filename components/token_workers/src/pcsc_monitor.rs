/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Watches PC/SC for readers and cards.

use std::ffi::CStr;
use std::process::ExitCode;
use std::time::Duration;

use ipc_channel::ipc::IpcSender;
use pcsc::{Context, Error, PNP_NOTIFICATION, ReaderState, Scope, State};
use token_traits::Frame;

use crate::lock_down;
use crate::process::Channels;
use crate::protocol::{MAX_READER_NAME_LENGTH, MAX_READERS, ReaderStatus, WorkerMessage};
use crate::sandbox::Kind;

/// How long to wait before looking again for a PC/SC service that is not running.
const SERVICE_RETRY: Duration = Duration::from_secs(1);

/// pcsclite compares the number of readers with what it was when the wait began, so a reader that comes or goes between
/// the listing and the wait goes unnoticed. This bounds for how long.
const LIST_AGAIN: Duration = Duration::from_secs(30);

/// The same after a change: readers come and go in groups, like the slots of one device.
const LIST_SOON: Duration = Duration::from_millis(100);

/// Runs the monitor until the channel closes or the service ends. The broker starts another one then.
pub fn run(channels: Channels<Frame, Frame>) -> ExitCode {
    let Channels {
        requests,
        replies,
        lifeline,
    } = channels;
    let Some(context) = wait_for_service(&replies) else {
        return ExitCode::SUCCESS;
    };
    // SCardGetStatusChange cannot be ended from here (SCardCancel needs a new socket), so a thread of its own notices
    // that the broker is gone.
    let watch_broker = || {
        let watcher = std::thread::Builder::new().spawn(move || {
            while requests.recv().is_ok() {}
            std::process::exit(0);
        });
        watcher.map(drop)
    };
    if let Err(code) = lock_down(Kind::PcscMonitor, lifeline, watch_broker) {
        return code;
    }
    match watch(&context, &replies) {
        Ok(()) => ExitCode::SUCCESS,
        // Locked down, this process cannot connect to a new service.
        Err(error) => {
            log::info!("the PC/SC service ended: {error}");
            let _ = send(&replies, &WorkerMessage::NoService);
            ExitCode::FAILURE
        }
    }
}

/// Connects to the service; waits for it where it is not running. `None` when the broker has gone meanwhile: then it does
/// not take any more what it is told. This process, which is not locked down yet, reads nothing that the broker sends.
fn wait_for_service(replies: &IpcSender<Frame>) -> Option<Context> {
    loop {
        match Context::establish(Scope::User) {
            Ok(context) => return Some(context),
            Err(error) => log::debug!("no PC/SC service: {error}"),
        }
        send(replies, &WorkerMessage::NoService).ok()?;
        std::thread::sleep(SERVICE_RETRY);
    }
}

/// Reports every change. Returns `Ok` when the broker has gone, else the error with which PC/SC failed.
fn watch(context: &Context, replies: &IpcSender<Frame>) -> Result<(), Error> {
    let mut states = vec![ReaderState::new(PNP_NOTIFICATION(), State::UNAWARE)];
    let mut reported = None;
    let mut limit = LIST_SOON;
    loop {
        let names = match context.list_readers_owned() {
            // A reader came while they were counted.
            Err(Error::InsufficientBuffer) => continue,
            names => names?,
        };
        states.retain(|state| {
            state.name() == PNP_NOTIFICATION()
                || names.iter().any(|name| name.as_c_str() == state.name())
        });
        for name in &names {
            if states.len() <= MAX_READERS
                && states.iter().all(|state| state.name() != name.as_c_str())
                && usable_name(name).is_some()
            {
                states.push(ReaderState::new(name.clone(), State::UNAWARE));
            }
        }
        // A reader that was just added is reported at once, because its state is not known yet.
        if states.len() > 1 || reported.is_some() {
            match context.get_status_change(Some(limit), &mut states) {
                Ok(()) | Err(Error::Timeout) => {}
                // One of them has gone since they were listed, and nothing new is known of the others.
                Err(Error::UnknownReader) => {
                    limit = LIST_SOON;
                    continue;
                }
                Err(error) => return Err(error),
            }
        }
        for state in &mut states {
            state.sync_current_state();
        }
        let now: Vec<ReaderStatus> = states.iter().filter_map(status).collect();
        limit = LIST_AGAIN;
        if reported.as_ref() != Some(&now) {
            limit = LIST_SOON;
            if send(replies, &WorkerMessage::Readers(now.clone())).is_err() {
                return Ok(());
            }
            reported = Some(now);
        }
    }
}

fn status(state: &ReaderState) -> Option<ReaderStatus> {
    let flags = state.event_state();
    if state.name() == PNP_NOTIFICATION()
        || flags.intersects(State::UNKNOWN | State::UNAVAILABLE | State::IGNORE)
    {
        return None;
    }
    Some(ReaderStatus {
        name: usable_name(state.name())?.to_owned(),
        present: flags.contains(State::PRESENT),
        card_events: state.event_count(),
    })
}

/// A name that can be passed on and given back to PC/SC unchanged.
fn usable_name(name: &CStr) -> Option<&str> {
    name.to_str()
        .ok()
        .filter(|name| name.len() <= MAX_READER_NAME_LENGTH)
}

fn send(replies: &IpcSender<Frame>, message: &WorkerMessage) -> Result<(), ()> {
    let frame = Frame::encode(message).map_err(|_| ())?;
    replies.send(frame).map_err(|_| ())
}
