/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Applets that tell origins apart by themselves (`secure_element::origin`) are told the origin after each SELECT, before
//! anything else reaches them.

use secure_element::origin;

use super::*;
use crate::reader::{Found, Knowledge, Telling};

const REFUSED: &str = "the applet refuses this origin";
const RESERVED: &str = "no page may send this command to an applet that is told the origin";

impl Found {
    /// What the answer to SELECT with P2 of 00 says.
    pub(super) fn new(response: &ResponseApdu) -> Self {
        Self {
            df_name: df_name(response),
            origin: if origin::is_announced(&response.data) {
                Knowledge::Wanted
            } else {
                Knowledge::NotWanted
            },
        }
    }

    /// Together with what the answer to another SELECT of it says. `None` if that has found another one.
    pub(super) fn again(self, response: &ResponseApdu) -> Option<Self> {
        match (self.df_name, df_name(response)) {
            (Some(before), Some(now)) if before != now => None,
            (before, now) => Some(Self {
                df_name: before.or(now),
                ..self
            }),
        }
    }
}

impl OpenChannel {
    /// Whether a page may send a command on it.
    pub(super) fn check_command(&self, header: Header) -> Result<(), TokenError> {
        if self.knows_origin && origin::is_reserved(header) {
            return Err(TokenError::new(ErrorKind::Security, RESERVED));
        }
        access::check_command(&self.access, header)
    }
}

impl Broker {
    /// Tells an applet that was just selected the origin of the document that it is for.
    pub(super) fn present_origin(
        &mut self,
        key: ReaderKey,
        number: ChannelNumber,
        found: Found,
        telling: Telling,
        deadline: Instant,
        now: Instant,
    ) {
        let port = self.ports.get(&telling.ticket().port);
        let command = port.map(|port| {
            let origin = port.identity.origin.as_str();
            origin::present_command(origin, number)
        });
        match command {
            Some(Ok(command)) => {
                let body = transmit(command.encode(), false, deadline, now);
                let step = Step::PresentOrigin(number, found, Box::new(telling));
                self.run(key, step, body, deadline);
            }
            Some(Err(_)) | None => self.origin_refused(key, number, &telling),
        }
    }

    /// Goes on with the applet, if it has taken the origin.
    #[expect(clippy::too_many_arguments, reason = "what an answer comes with")]
    pub(super) fn origin_presented(
        &mut self,
        key: ReaderKey,
        number: ChannelNumber,
        found: Found,
        telling: Telling,
        status: StatusWord,
        deadline: Instant,
        now: Instant,
    ) {
        if !status.is_ok() {
            return self.origin_refused(key, number, &telling);
        }
        let found = Found {
            origin: Knowledge::Told,
            ..found
        };
        match telling {
            Telling::Opened(opening, selected) => {
                self.channel_opened(key, opening, number, Some((&selected, found)), now);
            }
            Telling::Next(ticket, id, selected) => {
                self.next_selected(key, ticket, id, deadline, found, &selected, now);
            }
            Telling::Again(ticket, id) => {
                self.selected_again(key, ticket, id, Some(found), deadline, now)
            }
        }
    }

    fn origin_refused(&mut self, key: ReaderKey, number: ChannelNumber, telling: &Telling) {
        self.refuse(telling.ticket(), ErrorKind::Security, REFUSED);
        self.give_back(key, number, telling);
    }

    /// Closes a channel whose applet has not been told the origin.
    pub(super) fn give_back(&mut self, key: ReaderKey, number: ChannelNumber, telling: &Telling) {
        match telling {
            Telling::Opened(..) => self.close_first(key, number),
            Telling::Next(ticket, id, _) | Telling::Again(ticket, id) => {
                self.forget_channel(ticket.port, *id);
            }
        }
    }
}
