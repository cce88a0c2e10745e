/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The commands that are measured, and the two sides that send them: a native program and a page.

use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use e2e::browser::Browser;
use e2e::shell::Options;
use pcsc::{Card, Context, Disposition, Protocols, Scope, ShareMode};
use serde_json::{Value, json};
use virtual_card::applets::echo;

use crate::{Aim, Result};

/// How long one turn of measurements may take.
const LIMIT: Duration = Duration::from_secs(30);
/// How long PC/SC may take to notice a card.
const NOTICE: Duration = Duration::from_secs(10);

/// A command to the echo applet. It answers with the data, or with P1 and P2 where there is none.
#[derive(Clone, Copy)]
pub struct Exchange {
    pub name: &'static str,
    ins: u8,
    parameters: [u8; 2],
    /// Of the command's data.
    length: u16,
    /// Commands in one turn.
    pub count: usize,
    pub aim: Option<Aim>,
}

/// A header and Le: a command that carries nothing.
pub const FIVE_BYTES: Exchange = Exchange {
    name: "5-byte command",
    ins: echo::INS_PARAMETERS,
    parameters: [0x12, 0x34],
    length: 0,
    count: 512,
    aim: None,
};

/// As much as fits into a command of short length, there and back.
pub const SHORT: Exchange = Exchange {
    name: "255 bytes echoed",
    ins: echo::INS_ECHO,
    parameters: [0, 0],
    length: 255,
    count: 512,
    aim: None,
};

/// Extended length.
pub const EXTENDED: Exchange = Exchange {
    name: "4 KiB echoed",
    length: 4096,
    ..SHORT
};

/// A card that takes 10 ms.
pub const SLOW: Exchange = Exchange {
    name: "10 ms card",
    ins: echo::INS_DELAY,
    parameters: [0, 1],
    length: 1,
    count: 32,
    aim: Some(Aim::Ratio(1.02)),
};

impl Exchange {
    fn data(&self) -> Vec<u8> {
        echo::pattern(self.length)
    }

    fn answer(&self) -> Vec<u8> {
        match self.length {
            0 => self.parameters.to_vec(),
            _ => self.data(),
        }
    }

    /// The command as bytes.
    fn apdu(&self, channel: u8) -> Vec<u8> {
        let [p1, p2] = self.parameters;
        let header = [class(channel), self.ins, p1, p2];
        match (self.length, u8::try_from(self.length)) {
            (0, _) => [&header[..], &[2]].concat(),
            (_, Ok(length)) => [&header[..], &[length], &self.data(), &[0]].concat(),
            (length, Err(_)) => {
                let length = length.to_be_bytes();
                [&header[..], &[0], &length, &self.data(), &[0, 0]].concat()
            }
        }
    }

    /// As the page's script takes it.
    pub fn to_json(self) -> Value {
        json!({ "ins": self.ins, "parameters": self.parameters, "length": self.length })
    }
}

/// The interindustry class byte of a channel (ISO 7816-4, 5.4.1).
fn class(channel: u8) -> u8 {
    if channel < 4 {
        channel
    } else {
        0x40 | (channel - 4)
    }
}

/// A program that uses PC/SC directly: a thread with a connection of its own to the card in a slot.
pub struct Native {
    orders: Sender<(Exchange, usize)>,
    moments: Receiver<std::result::Result<Vec<f64>, String>>,
}

impl Native {
    /// Connects as soon as the card is noticed, and opens a channel.
    pub fn start(slot: u8) -> Result<Native> {
        let (orders, receiver) = mpsc::channel();
        let (sender, moments) = mpsc::channel();
        let native = Native { orders, moments };
        thread::spawn(move || {
            let connection = match Connection::open(slot) {
                Ok(connection) => connection,
                Err(error) => return drop(sender.send(Err(error.to_string()))),
            };
            // Both fail only when nobody waits any more.
            let mut sent = sender.send(Ok(Vec::new()));
            while sent.is_ok()
                && let Ok((exchange, count)) = receiver.recv()
            {
                let moments = connection.exchange(&exchange, count);
                sent = sender.send(moments.map_err(|error| error.to_string()));
            }
            connection.close();
        });
        native.moments()?;
        Ok(native)
    }

    /// Begins to send so many commands, one after the other.
    pub fn begin(&self, exchange: Exchange, count: usize) -> Result<()> {
        Ok(self.orders.send((exchange, count))?)
    }

    /// The moments of the start and of each answer, in µs.
    pub fn moments(&self) -> Result<Vec<f64>> {
        Ok(self.moments.recv_timeout(LIMIT)??)
    }

    /// Both.
    pub fn exchange(&self, exchange: Exchange, count: usize) -> Result<Vec<f64>> {
        self.begin(exchange, count)?;
        self.moments()
    }
}

/// A channel to the echo applet.
pub struct Connection {
    card: Card,
    channel: u8,
    /// Moments count from here.
    opened: Instant,
}

impl Connection {
    /// Connects as soon as the card is noticed, and opens a channel.
    pub fn open(slot: u8) -> Result<Connection> {
        let mut connection = Connection {
            card: connect(slot)?,
            channel: 0,
            opened: Instant::now(),
        };
        let mut buffer = [0; 300];
        let opened = connection.transmit(&[0x00, 0x70, 0x00, 0x00, 0x01], &mut buffer)?;
        let &[channel @ 1..=19] = opened else {
            return Err(format!("no channel: {opened:02X?}").into());
        };
        connection.channel = channel;
        let select = [&[class(channel), 0xA4, 0x04, 0x0C, 8][..], &echo::AID].concat();
        connection.transmit(&select, &mut buffer)?;
        Ok(connection)
    }

    fn transmit<'a>(&self, command: &[u8], buffer: &'a mut [u8]) -> Result<&'a [u8]> {
        let answer = self.card.transmit(command, buffer)?;
        match answer.strip_suffix(&[0x90, 0x00]) {
            Some(data) => Ok(data),
            None => Err(format!("the card answered {answer:02X?}").into()),
        }
    }

    /// The moments of the start and of each answer, in µs.
    pub fn exchange(&self, exchange: &Exchange, count: usize) -> Result<Vec<f64>> {
        let (command, expected) = (exchange.apdu(self.channel), exchange.answer());
        let mut buffer = vec![0; pcsc::MAX_BUFFER_SIZE_EXTENDED];
        let now = || self.opened.elapsed().as_secs_f64() * 1e6;
        let mut moments = vec![now()];
        for _ in 0..count {
            let answer = self.transmit(&command, &mut buffer)?;
            moments.push(now());
            if answer != expected {
                return Err("a wrong answer".into());
            }
        }
        Ok(moments)
    }

    /// Closes the channel and leaves the card as it is: dropping it would reset it under the browser.
    pub fn close(self) {
        // Both fail only if the card or the service is gone, and the channel with it.
        let _ = self.transmit(&[0x00, 0x70, 0x80, self.channel], &mut [0; 300]);
        let _ = self.card.disconnect(Disposition::LeaveCard);
    }
}

/// Connects to the card in a slot, as soon as it is noticed.
fn connect(slot: u8) -> Result<Card> {
    let context = Context::establish(Scope::User)?;
    let reader = if slot == 0 {
        c"Virtual PCD 00 00"
    } else {
        c"Virtual PCD 00 01"
    };
    let deadline = Instant::now() + NOTICE;
    loop {
        match context.connect(reader, ShareMode::Shared, Protocols::T1) {
            Ok(card) => return Ok(card),
            Err(error) if Instant::now() > deadline => return Err(error.into()),
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// A browser with this token configuration.
pub fn start_browser(token_config: &str) -> Result<Browser> {
    Browser::start(&Options {
        token_config: token_config.to_owned(),
        ..Options::default()
    })
}

/// A page with channels to both cards.
pub struct Page<'a>(&'a Browser);

impl Page<'_> {
    /// Lets the browser's page see tokens, and gives it the functions of `page.js`.
    pub fn new(browser: &Browser) -> Result<Page<'_>> {
        browser.grant()?;
        browser.session.execute(include_str!("page.js"), &[])?;
        Ok(Page(browser))
    }

    /// Opens channels to the card in a slot, as soon as it is noticed.
    pub fn open(&self, slot: u8, count: usize) -> Result<()> {
        let deadline = Instant::now() + NOTICE;
        loop {
            match self.0.evaluate(&format!("bench.open({slot}, {count})"))? {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(error.into()),
                Err(_) => thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// What one of the functions gives.
    pub fn call(&self, expression: &str) -> Result<Value> {
        Ok(self.0.evaluate(&format!("bench.{expression}"))??)
    }

    /// Sends so many commands to the card in each of these slots, with so many in flight at any time. For each slot, the
    /// moments of the start and of each answer, in µs.
    pub fn exchange(
        &self,
        slots: &[u8],
        in_flight: usize,
        exchange: Exchange,
        count: usize,
    ) -> Result<Vec<Vec<f64>>> {
        let exchange = exchange.to_json();
        let times = self.call(&format!(
            "exchanges({slots:?}, {in_flight}, {exchange}, {count})"
        ))?;
        let mut times: Vec<Vec<f64>> = serde_json::from_value(times)?;
        times.iter_mut().flatten().for_each(|time| *time *= 1e3);
        if times.len() != slots.len() || times.iter().any(|times| times.len() != count + 1) {
            return Err("the page measured something else".into());
        }
        Ok(times)
    }
}
