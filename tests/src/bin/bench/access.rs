/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What access rules cost: a decision, reading them from a card, and enforcing them. It needs the token broker, and no
//! browser: a client of its own stands in for the page.

use std::env;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use ipc_channel::ipc::{IpcReceiver, IpcSender};
use secure_element::access::{
    ARA_M_AID, AidRef, ApduRule, AppId, AppRef, AraMReader, AraMStep, Filter, Outcome, Rule,
    RuleSet, Target,
};
use secure_element::apdu::{Header, ResponseApdu};
use secure_element::channel::{Aid, SelectResponse, select};
use secure_element::class_byte::ChannelNumber;
use token_client::{ClientConfig, TokenClient};
use token_traits::control::AccessConfig;
use token_traits::port::{
    ChannelId, ChannelType, Command, PortMessage, PortRequest, ReaderId, ReplyBody, RequestBody,
    RequestId, SessionId,
};
use token_traits::prompt::{AnswerCallback, PromptAnswer, PromptHost, PromptId, PromptRequest};
use token_traits::{
    Connection, Feature, FeatureSet, Frame, Origin, PermissionState, PortIdentity, TokenBroker,
};
use virtual_card::applets::ara_m::{self, AraM};
use virtual_card::applets::echo;
use virtual_card::{Card, VirtualCard};

use crate::{Aim, Measurement, Result};

/// The variable that has the path of the token broker's program.
const BROKER: &str = "SERVO_TOKENS_BROKER";
/// Baseline and ours take turns, so that a machine that changes its pace slows both.
const TURNS: usize = 10;
/// How many decisions are timed together, because one takes less than a clock can tell.
const BATCH: u32 = 1000;
/// How many batches there are in a turn.
const BATCHES: usize = 100;
/// How many round trips there are in a turn.
const ROUNDS: usize = 1000;
/// How many channels are opened in a turn.
const OPENINGS: usize = 50;
/// How often the rules are read in a turn.
const READINGS: usize = 100;
/// As many rules as the public conformance suite has on its card.
const CARD_RULES: usize = 41;
/// The shop of the virtual card's sample, which has filters.
const ORIGIN: &str = "https://shop.example";
/// Nothing takes so long.
const LIMIT: Duration = Duration::from_secs(30);

/// A decision takes so many µs at most, however many rules there are.
const DECISION_AIM: Aim = Aim::AtMost(1.0);
/// A decision among many rules takes so many times one among few.
const FLAT: Aim = Aim::Ratio(1.5);
/// A command takes so many times what it takes without rules.
const ROUND_TRIP_AIM: Aim = Aim::Ratio(1.05);

/// Everything.
pub fn run() -> Result<Vec<Measurement>> {
    let broker = PathBuf::from(env::var_os(BROKER).ok_or("SERVO_TOKENS_BROKER is not set")?);
    let mut measurements = decisions()?;
    measurements.push(reading()?);
    measurements.extend(enforcement(&broker)?);
    Ok(measurements)
}

fn aid(number: usize) -> Result<Aid> {
    let [.., a, b] = number.to_be_bytes();
    Ok(Aid::new(&[0xA0, 0x00, 0x00, 0x04, 0x76, 0x53, a, b])?)
}

fn app(number: usize) -> AppId {
    let mut hash = [0; 32];
    hash[..8].copy_from_slice(&number.to_be_bytes());
    let mut sha1 = [0; 20];
    sha1[..8].copy_from_slice(&number.to_be_bytes());
    AppId::from_hashes(Some(hash), Some(sha1))
}

/// Rules for as many applications, each for another origin and with a filter.
fn rules(count: usize) -> Result<RuleSet> {
    let filter = Filter {
        header: [0x00, 0xB0, 0x00, 0x00],
        mask: [0xFF, 0xFF, 0x00, 0x00],
    };
    let rules = (0..count).map(|number| {
        let hash = app(number).sha1().copied().unwrap_or_default();
        Ok(Rule {
            aid: AidRef::Aid(aid(number)?),
            app: AppRef::Sha1(hash),
            apdu: Some(ApduRule::Filters(vec![filter])),
        })
    });
    Ok(RuleSet::new(rules.collect::<Result<Vec<Rule>>>()?))
}

/// How long each of [`BATCHES`] batches took for one decision, in µs.
fn time(mut decide: impl FnMut()) -> Vec<f64> {
    let batch = |_| {
        let begun = Instant::now();
        for _ in 0..BATCH {
            decide();
        }
        begun.elapsed().as_secs_f64() * 1e6 / f64::from(BATCH)
    };
    (0..BATCHES).map(batch).collect()
}

/// A decision among 10 and among 10,000 rules, against that among one, and among 10.
fn decisions() -> Result<Vec<Measurement>> {
    let command = Header::new(0x00, 0xB0, 0x00, 0x00);
    let mut measurements = Vec::new();
    for (few, many, aim) in [
        (1, 10, DECISION_AIM),
        (1, 10_000, DECISION_AIM),
        (10, 10_000, FLAT),
    ] {
        let sets = [rules(few)?, rules(many)?];
        for what in ["decision", "refusal", "question before SELECT"] {
            let mut times = [Vec::new(), Vec::new()];
            for _ in 0..TURNS {
                for ((set, count), times) in sets.iter().zip([few, many]).zip(&mut times) {
                    let last = aid(count - 1)?;
                    let target = Target::Application(last);
                    let prefix = last.as_bytes().get(..5).unwrap_or_default();
                    let (holder, stranger) = (app(count - 1), app(count));
                    let decide: Box<dyn Fn() -> bool> = match what {
                        "decision" => Box::new(|| {
                            set.channel_access(black_box(target), black_box(&holder))
                                .allows_command(black_box(command))
                        }),
                        "refusal" => Box::new(|| {
                            !set.channel_access(black_box(target), black_box(&stranger))
                                .allows_channel()
                        }),
                        _ => Box::new(|| set.may_select(black_box(prefix), black_box(&holder))),
                    };
                    if !decide() {
                        return Err(format!("a wrong {what}").into());
                    }
                    times.extend(time(|| {
                        black_box(decide());
                    }));
                }
            }
            let [baseline, ours] = times;
            let name = format!("{what}, {many} rules / {few}");
            measurements.push(Measurement::new(name, "µs", baseline, ours).aim(aim));
        }
    }
    Ok(measurements)
}

/// A card whose ARA-M has [`CARD_RULES`] rules: all but one for other origins.
fn card_with_rules() -> Result<VirtualCard> {
    let mut body = ara_m::rule(Some(&echo::AID), &[], &[0x01]);
    for number in 1..CARD_RULES {
        let hash = app(number).sha1().copied().unwrap_or_default();
        body.extend(ara_m::rule(Some(aid(number)?.as_bytes()), &hash, &[0x01]));
    }
    let mut card = VirtualCard::from_profile("default")?;
    card.install(Box::new(AraM::with_rules(body)));
    Ok(card)
}

/// Reads the rules once, from a card that is called directly; the baseline sends the card the same commands.
fn reading() -> Result<Measurement> {
    let mut card = card_with_rules()?;
    let ara_m = Aid::new(&ARA_M_AID)?;
    let select = select(Some(&ara_m), SelectResponse::Fci, ChannelNumber::BASIC)?.encode();
    let mut commands: Vec<Vec<u8>> = Vec::new();
    let mut length = 0;
    let (mut baseline, mut ours) = (Vec::new(), Vec::new());
    for turn in 0..TURNS * READINGS {
        let begun = Instant::now();
        card.transmit(&select);
        let mut sent = Vec::new();
        let mut step = AraMReader::start(ChannelNumber::BASIC, None);
        let rules = loop {
            step = match step {
                AraMStep::Send(reader, command) => {
                    let command = command.encode();
                    let response = ResponseApdu::parse(&card.transmit(&command))?;
                    if turn == 0 {
                        length += response.data.len();
                        sent.push(command);
                    }
                    reader.receive(&response)
                }
                AraMStep::Done(Outcome::Rules { rules, .. }) => break rules,
                AraMStep::Done(other) => return Err(format!("no rules: {other:?}").into()),
            };
        };
        black_box(rules);
        ours.push(begun.elapsed().as_secs_f64() * 1e6);
        if turn == 0 {
            commands = sent;
        }
        let begun = Instant::now();
        card.transmit(&select);
        for command in &commands {
            black_box(card.transmit(command));
        }
        baseline.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    let name = format!("reading {CARD_RULES} rules, {length} bytes / commands only");
    Ok(Measurement::new(name, "µs", baseline, ours))
}

/// A card, and whose rules are asked about it.
struct Setting {
    name: &'static str,
    profile: &'static str,
    access: AccessConfig,
    /// What is opened.
    applet: [u8; 8],
}

/// What a page's requests take with rules, against the same without.
fn enforcement(broker: &Path) -> Result<Vec<Measurement>> {
    let mut device_rules: String = (0..10_000)
        .map(|number| {
            format!("[[rule]]\norigin=\"https://a{number}.example\"\naid=\"F0534552564F01{:02X}\"\napdu=\"never\"\n", number % 256)
        })
        .collect();
    device_rules.push_str(&format!(
        "[[rule]]\norigin=\"{ORIGIN}\"\naid=\"F0534552564F0101\"\napdu=\"always\"\n"
    ));
    let settings = [
        Setting {
            name: "one rule",
            profile: "default",
            access: AccessConfig::default(),
            applet: echo::AID,
        },
        Setting {
            name: "with a filter",
            profile: "ara-m",
            access: AccessConfig::default(),
            applet: echo::SECOND_AID,
        },
        Setting {
            name: "10,000 rules of the device",
            profile: "no-rules",
            access: AccessConfig {
                device_rules,
                ..AccessConfig::default()
            },
            applet: echo::AID,
        },
        Setting {
            name: "rules in files",
            profile: "uicc",
            access: AccessConfig::default(),
            applet: echo::AID,
        },
    ];
    let mut measurements = Vec::new();
    for Setting {
        name,
        profile,
        access,
        applet,
    } in settings
    {
        let mut without = Page::open(broker, profile, None, None)?;
        let mut with = Page::open(broker, profile, Some(access), None)?;
        let mut times: [[Vec<f64>; 2]; 3] = Default::default();
        for turn in 0..=TURNS {
            for (side, page) in [&mut without, &mut with].into_iter().enumerate() {
                // The first turn is the warm-up.
                let mut note = |row: usize, taken: Duration| {
                    if turn > 0 {
                        times[row][side].push(taken.as_secs_f64() * 1e6);
                    }
                };
                for _ in 0..OPENINGS {
                    // What is known of the card ends with the last session.
                    let session = page.session()?;
                    let (first, taken) = timed(|| page.channel(session, &applet))?;
                    note(0, taken);
                    let (_, taken) = timed(|| page.channel(session, &applet))?;
                    note(1, taken);
                    page.ask(RequestBody::CloseSession(session))?;
                    black_box(first);
                }
                let session = page.session()?;
                let channel = page.channel(session, &applet)?;
                for _ in 0..ROUNDS {
                    let ((), taken) = timed(|| page.round_trip(channel))?;
                    note(2, taken);
                }
                page.ask(RequestBody::CloseSession(session))?;
            }
        }
        let rows = ["first channel", "another channel", "round trip of 5 bytes"];
        for (row, [baseline, ours]) in rows.into_iter().zip(times) {
            let aim = (row == "round trip of 5 bytes").then_some(ROUND_TRIP_AIM);
            let name = format!("{row}, {name} / not enforced");
            measurements.push(Measurement::new(name, "µs", baseline, ours).aim(aim));
        }
    }
    Ok(measurements)
}

fn timed<T>(action: impl FnOnce() -> Result<T>) -> Result<(T, Duration)> {
    let begun = Instant::now();
    let outcome = action()?;
    Ok((outcome, begun.elapsed()))
}

/// Whatever is asked, nobody answers.
struct Nobody;

impl PromptHost for Nobody {
    fn show(&self, _: PromptRequest, answer: AnswerCallback) {
        answer(PromptAnswer::Refused);
    }

    fn withdraw(&self, _: PromptId) {}
}

/// A page without a browser: a client of the broker with one port.
pub struct Page {
    /// The processes end with it.
    _client: Arc<TokenClient>,
    requests: IpcSender<Frame>,
    messages: IpcReceiver<Frame>,
    next: u64,
}

impl Page {
    /// With the answer to `getReaders()`.
    pub fn open(
        broker: &Path,
        profile: &str,
        access: Option<AccessConfig>,
        store: Option<PathBuf>,
    ) -> Result<Self> {
        let config = ClientConfig {
            broker_binary: broker.to_owned(),
            pcsc: false,
            uicc_readers: Vec::new(),
            virtual_card: Some(profile.to_owned()),
            access,
            store,
            modules: Vec::new(),
            tpm: None,
            piv_management_key: None,
        };
        let client = TokenClient::new(config, Arc::new(Nobody));
        let origin = Origin::new(ORIGIN).ok_or("no origin")?;
        client.set_permission(
            origin.clone(),
            origin.clone(),
            Feature::SecureElement,
            PermissionState::Granted,
        );
        let identity = PortIdentity {
            origin: origin.clone(),
            top_level_origin: origin,
            webview: 1,
            event_loop: 1,
            private: false,
            connection: Connection::TrustedHttps,
            features: FeatureSet::ALL,
        };
        let (sender, receiver) = mpsc::channel();
        client.open_port(
            identity,
            Box::new(move |port| {
                // Whoever waited has gone.
                let _ = sender.send(port);
            }),
        );
        let port = receiver.recv_timeout(LIMIT)??;
        let mut page = Self {
            _client: client,
            requests: port.requests,
            messages: port.messages,
            next: 1,
        };
        page.ask(RequestBody::GetReaders)?;
        Ok(page)
    }

    fn ask(&mut self, body: RequestBody) -> Result<ReplyBody> {
        let id = RequestId(self.next);
        self.next += 1;
        self.requests
            .send(Frame::encode(&PortRequest { id, body })?)?;
        loop {
            let frame = self
                .messages
                .try_recv_timeout(LIMIT)
                .map_err(|error| format!("no answer: {error:?}"))?;
            if let PortMessage::Reply { request, result } = frame.decode()?
                && request == id
            {
                return Ok(result?);
            }
        }
    }

    /// Opens a session with the embedded card.
    pub fn session(&mut self) -> Result<SessionId> {
        match self.ask(RequestBody::OpenSession(ReaderId(0)))? {
            ReplyBody::Session(session) => Ok(session.id),
            other => Err(format!("no session: {other:?}").into()),
        }
    }

    fn channel(&mut self, session: SessionId, aid: &[u8]) -> Result<ChannelId> {
        let body = RequestBody::OpenChannel {
            session,
            channel_type: ChannelType::Supplementary,
            aid: Some(aid.to_vec()),
            p2: 0,
        };
        match self.ask(body)? {
            ReplyBody::Channel(channel) => Ok(channel.id),
            other => Err(format!("no channel: {other:?}").into()),
        }
    }

    fn round_trip(&mut self, channel: ChannelId) -> Result<()> {
        let command = [0x00, echo::INS_ECHO, 0x00, 0x00, 0x05, 1, 2, 3, 4, 5, 0x00];
        let body = RequestBody::Transmit {
            channel,
            command: Command::Raw(command.to_vec()),
            timeout_ms: None,
        };
        match self.ask(body)? {
            ReplyBody::Response(response) if response == [1, 2, 3, 4, 5, 0x90, 0x00] => Ok(()),
            other => Err(format!("a wrong answer: {other:?}").into()),
        }
    }
}
