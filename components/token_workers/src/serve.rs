/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The loop of a worker that talks to a card.

use std::time::{Duration, Instant};

use ipc_channel::TryRecvError;
use ipc_channel::ipc::{IpcReceiver, IpcSender};
use secure_element::apdu::CommandApdu;
use secure_element::exchange::{self, ExchangeError, Kind};
use token_traits::Frame;

use crate::protocol::{
    Connected, Protocol, ReplyBody, RequestBody, WorkerError, WorkerMessage, WorkerRequest,
};

/// How long to wait for a card that another program keeps for itself, before it is tried again.
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// A card behind some device.
pub trait Device {
    /// Connects to the card, after a reset of it if asked for, or makes sure that the connection still stands.
    fn connect(&mut self, reset: bool) -> Result<Connected, WorkerError>;

    /// Gives `commands` a way to exchange bytes with the connected card, over its transmission protocol. Where one
    /// command takes several exchanges, nobody else's come between. What comes back may be too short to be a response.
    fn with_card<T>(
        &mut self,
        commands: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<Vec<u8>, WorkerError>) -> T,
    ) -> Result<T, WorkerError>;

    /// The protocol of the connection, if there is one.
    fn protocol(&self) -> Option<Protocol>;

    /// Lets go of the card and leaves it as it is.
    fn disconnect(&mut self);

    /// Where nobody else watches the reader: after how long its card, which has gone, will be back.
    fn card_returns_after(&mut self) -> Option<Duration> {
        None
    }
}

/// Serves a device until the channel closes, the peer breaks the protocol, or the device is of no use any more.
pub fn serve(device: &mut impl Device, requests: &IpcReceiver<Frame>, replies: &IpcSender<Frame>) {
    let mut card_is_away = false;
    loop {
        let returns_after = device.card_returns_after();
        if returns_after.is_some() != card_is_away {
            card_is_away = !card_is_away;
            if send(replies, &WorkerMessage::CardPresent(!card_is_away)).is_err() {
                break;
            }
        }
        let frame = match returns_after {
            None => requests.recv().ok(),
            Some(time) => match requests.try_recv_timeout(time) {
                Err(TryRecvError::Empty) => continue,
                received => received.ok(),
            },
        };
        let Some(frame) = frame else {
            break;
        };
        let WorkerRequest { id, body } = match frame.decode() {
            Ok(request) => request,
            Err(error) => {
                log::error!("the broker sent something else than a request: {error}");
                break;
            }
        };
        let result = perform(device, body);
        if let Err(error) = &result {
            log::debug!("request {id}: {error}");
        }
        // Locked down, this process cannot connect to a new service. Its successor can.
        let is_over = result == Err(WorkerError::NoService);
        let reply = WorkerMessage::Reply {
            request: id,
            result,
        };
        if send(replies, &reply).is_err() || is_over {
            break;
        }
    }
    device.disconnect();
}

fn send(replies: &IpcSender<Frame>, message: &WorkerMessage) -> Result<(), ()> {
    let frame = Frame::encode(message).map_err(|error| {
        log::error!("a message does not fit into a frame: {error}");
    })?;
    replies.send(frame).map_err(|_| ())
}

fn perform(device: &mut impl Device, body: RequestBody) -> Result<ReplyBody, WorkerError> {
    let result = match body {
        RequestBody::Connect { reset } => device.connect(reset).map(ReplyBody::Connected),
        RequestBody::Reset => device.connect(true).map(ReplyBody::Connected),
        RequestBody::Transmit {
            command,
            select,
            timeout_ms,
        } => transmit(device, &command, select, timeout_ms).map(ReplyBody::Response),
        RequestBody::Disconnect => {
            device.disconnect();
            Ok(ReplyBody::Done)
        }
    };
    if let Err(error) = result
        && !error.keeps_connection()
    {
        device.disconnect();
    }
    result
}

fn transmit(
    device: &mut impl Device,
    command: &[u8],
    select: bool,
    timeout_ms: u32,
) -> Result<Vec<u8>, WorkerError> {
    let deadline = Instant::now() + Duration::from_millis(timeout_ms.into());
    let command = CommandApdu::parse(command).map_err(|_| WorkerError::Command)?;
    let kind = if select { Kind::Select } else { Kind::Ordinary };
    let protocol = match device.protocol().ok_or(WorkerError::NotConnected)? {
        Protocol::T0 => exchange::Protocol::T0,
        Protocol::T1 => exchange::Protocol::T1,
    };
    loop {
        let response = device.with_card(|exchange| {
            exchange::run(&command, protocol, kind, |bytes| {
                if Instant::now() >= deadline {
                    return Err(WorkerError::Timeout);
                }
                exchange(bytes)
            })
        });
        match response.and_then(|response| response) {
            // The service has no event for the end of another program's transaction.
            Err(WorkerError::Busy) => {
                let left = deadline.saturating_duration_since(Instant::now());
                std::thread::sleep(left.min(BUSY_PAUSE));
                if Instant::now() >= deadline {
                    return Err(WorkerError::Busy);
                }
            }
            response => return Ok(response?.encode()),
        }
    }
}

impl From<ExchangeError> for WorkerError {
    fn from(error: ExchangeError) -> Self {
        match error {
            ExchangeError::Class(_) => Self::Command,
            // No status word: the card went away in the middle of the command.
            ExchangeError::Response(_) => Self::Communication,
            ExchangeError::TooMuchData | ExchangeError::TooManySteps => Self::ResponseTooLong,
            ExchangeError::Ended => Self::Communication,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use ipc_channel::ipc;
    use proptest::prelude::*;

    use super::*;

    /// A device that answers what it was told to.
    struct Script {
        protocol: Protocol,
        connected: bool,
        answers: VecDeque<Result<Vec<u8>, WorkerError>>,
        sent: Vec<Vec<u8>>,
        delay: Duration,
    }

    impl Script {
        fn new(protocol: Protocol, answers: &[Result<&[u8], WorkerError>]) -> Self {
            Self {
                protocol,
                connected: true,
                answers: answers
                    .iter()
                    .map(|answer| answer.map(<[u8]>::to_vec))
                    .collect(),
                sent: vec![],
                delay: Duration::ZERO,
            }
        }

        fn transmit(&mut self, command: &[u8], select: bool) -> Result<ReplyBody, WorkerError> {
            let body = RequestBody::Transmit {
                command: command.to_vec(),
                select,
                timeout_ms: 10_000,
            };
            perform(self, body)
        }
    }

    impl Device for Script {
        fn connect(&mut self, _: bool) -> Result<Connected, WorkerError> {
            Err(WorkerError::NoCard)
        }

        fn with_card<T>(
            &mut self,
            commands: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<Vec<u8>, WorkerError>) -> T,
        ) -> Result<T, WorkerError> {
            Ok(commands(&mut |bytes| {
                std::thread::sleep(self.delay);
                self.sent.push(bytes.to_vec());
                self.answers.pop_front().expect("an answer")
            }))
        }

        fn protocol(&self) -> Option<Protocol> {
            self.connected.then_some(self.protocol)
        }

        fn disconnect(&mut self) {
            self.connected = false;
        }
    }

    const COMMAND: [u8; 5] = [0x00, 0xca, 0, 0, 0];

    #[test]
    fn t0_takes_what_steps_there_are_and_t1_takes_one() {
        let answers: [Result<&[u8], WorkerError>; 2] = [Ok(&[0x61, 0x02]), Ok(&[1, 2, 0x90, 0x00])];
        let mut t0 = Script::new(Protocol::T0, &answers);
        let response = Ok(ReplyBody::Response(vec![1, 2, 0x90, 0x00]));
        assert_eq!(t0.transmit(&COMMAND, false), response);
        assert_eq!(t0.sent, [COMMAND, [0x00, 0xc0, 0, 0, 2]]);

        let mut t1 = Script::new(Protocol::T1, &answers);
        let response = Ok(ReplyBody::Response(vec![0x61, 0x02]));
        assert_eq!(t1.transmit(&COMMAND, false), response);
        assert_eq!(t1.sent, [COMMAND]);
    }

    #[test]
    fn only_select_fetches_what_comes_with_a_warning() {
        let answers: [Result<&[u8], WorkerError>; 2] = [Ok(&[0x62, 0x83]), Ok(&[7, 0x90, 0x00])];
        for (select, expected) in [(false, vec![0x62, 0x83]), (true, vec![7, 0x62, 0x83])] {
            let mut card = Script::new(Protocol::T0, &answers);
            let reply = card.transmit(&COMMAND, select);
            assert_eq!(reply, Ok(ReplyBody::Response(expected)));
        }
    }

    #[test]
    fn answers_without_a_status_word_end_the_connection() {
        for answer in [&[][..], &[0x90]] {
            let mut card = Script::new(Protocol::T1, &[Ok(answer)]);
            assert_eq!(
                card.transmit(&COMMAND, false),
                Err(WorkerError::Communication)
            );
            assert!(!card.connected);
            assert_eq!(
                card.transmit(&COMMAND, false),
                Err(WorkerError::NotConnected)
            );
        }
        let mut card = Script::new(Protocol::T1, &[Err(WorkerError::CardReset)]);
        assert_eq!(card.transmit(&COMMAND, false), Err(WorkerError::CardReset));
        assert!(!card.connected);
    }

    #[test]
    fn a_command_that_cannot_be_sent_is_not_sent() {
        let mut card = Script::new(Protocol::T0, &[]);
        for command in [&[][..], &[0, 1, 2], &[0xff, 0xca, 0, 0]] {
            assert_eq!(card.transmit(command, false), Err(WorkerError::Command));
        }
        assert!(card.connected);
    }

    #[test]
    fn no_step_begins_after_the_time_is_over() {
        let mut card = Script::new(Protocol::T0, &[Ok(&[0x61, 0x02])]);
        card.delay = Duration::from_millis(20);
        let body = RequestBody::Transmit {
            command: COMMAND.to_vec(),
            select: false,
            timeout_ms: 10,
        };
        assert_eq!(perform(&mut card, body), Err(WorkerError::Timeout));
        assert_eq!(card.sent, [COMMAND]);
        assert!(card.connected);
    }

    #[test]
    fn a_card_that_never_ends_is_given_up() {
        let answers = vec![Ok(&[0x61, 0x00][..]); 2000];
        let mut card = Script::new(Protocol::T0, &answers);
        assert_eq!(
            card.transmit(&COMMAND, false),
            Err(WorkerError::ResponseTooLong)
        );
    }

    #[test]
    fn serving_answers_in_order_and_ends_with_the_channel_or_with_nonsense() {
        for nonsense in [None, Some(Frame::from_bytes(vec![0xff; 3]))] {
            let (to_worker, requests) = ipc::channel().unwrap();
            let (replies, from_worker) = ipc::channel::<Frame>().unwrap();
            let bodies = [
                RequestBody::Connect { reset: false },
                RequestBody::Disconnect,
            ];
            for (id, body) in (0..).zip(bodies) {
                let request = WorkerRequest { id, body };
                to_worker.send(Frame::encode(&request).unwrap()).unwrap();
            }
            if let Some(nonsense) = nonsense {
                to_worker.send(nonsense).unwrap();
            } else {
                drop(to_worker);
            }
            let mut device = Script::new(Protocol::T1, &[]);
            serve(&mut device, &requests, &replies);
            drop(replies);
            assert!(!device.connected);
            let expected = [Err(WorkerError::NoCard), Ok(ReplyBody::Done)];
            for (request, result) in (0..).zip(expected) {
                let message: WorkerMessage = from_worker.recv().unwrap().decode().unwrap();
                assert_eq!(message, WorkerMessage::Reply { request, result });
            }
            assert!(from_worker.recv().is_err());
        }
    }

    proptest! {
        #[test]
        fn whatever_a_card_answers_is_a_response_or_an_error(
            t0 in any::<bool>(),
            answers in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..6), 1100),
        ) {
            let answers: Vec<Result<&[u8], WorkerError>> =
                answers.iter().map(|answer| Ok(&answer[..])).collect();
            let mut card = Script::new(if t0 { Protocol::T0 } else { Protocol::T1 }, &answers);
            if let Ok(ReplyBody::Response(response)) = card.transmit(&COMMAND, true) {
                prop_assert!(response.len() >= 2);
            }
        }
    }
}
