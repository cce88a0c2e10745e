/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! `kill -9` of every kind of token process at random moments, while several documents use tokens all the time.
//!
//! After each, whoever waited has been answered, the next call works, and what a document or the user was told of is still
//! remembered. `TOKEN_KILL_CYCLES=N` has it done N times. `TOKEN_KILL_SEED=N` repeats the choices of an earlier run, as far
//! as the kernel lets it.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant, SystemTime};

use common::*;
use rustix::process::Pid;
use token_traits::port::{ChannelId, ReaderInfo, ReplyBody, RequestBody, RequestId};
use token_traits::prompt::{
    AnswerCallback, GrantId, Overview, PromptAnswer, PromptHost, PromptId, PromptRequest,
};
use token_traits::{ErrorKind, Origin, PortIdentity, TokenBroker as _};
use virtual_card::VirtualCard;
use virtual_card::applets::echo;
use virtual_card::test_support::Pcscd;

/// How often, if the environment does not say.
const CYCLES: u32 = 1000;
/// The same with PC/SC.
const PCSC_CYCLES: u32 = 60;

/// Browsers at the same time.
const LANES: u32 = 8;

/// Documents of each that use tokens.
const DOCUMENTS: usize = 3;

/// Kills of one browser's processes. With each in a row the next start has to wait longer.
const CYCLES_OF_BROWSER: u32 = 3;

/// Grants that one store is to take.
const GRANTS: usize = 400;

/// How long the broker may keep descriptors of a port or worker that has gone, for example.
const CALM: Duration = Duration::from_secs(5);

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn one_in(&mut self, chances: u64) -> bool {
        self.below(chances) == 0
    }
}

fn from_environment(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().expect(name))
}

fn seed() -> u64 {
    let seed = from_environment("TOKEN_KILL_SEED").unwrap_or_else(|| {
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        time.expect("a clock").subsec_nanos().into()
    });
    eprintln!("TOKEN_KILL_SEED={seed}");
    seed
}

fn cycles(usual: u32) -> u32 {
    let cycles = from_environment("TOKEN_KILL_CYCLES");
    cycles.map_or(usual, |cycles| u32::try_from(cycles).expect("a number"))
}

/// Allows everything, for good.
struct Generous;

impl PromptHost for Generous {
    fn show(&self, _request: PromptRequest, answer: AnswerCallback) {
        answer(PromptAnswer::Chosen {
            index: 0,
            remember: true,
        });
    }

    fn withdraw(&self, _id: PromptId) {}
}

/// What all threads of one browser know.
struct Scene<'a> {
    browser: &'a Browser,
    cards: usize,
    is_over: AtomicBool,
    /// How many processes have been killed, and when the last one was.
    kills: AtomicU64,
    killed: Mutex<Instant>,
    /// For each document: up to which kill it has done everything that it wanted, beginning after that.
    good: [AtomicU64; DOCUMENTS],
    /// The longest that an answer took which came to nothing.
    longest: Mutex<Duration>,
    answers: AtomicU64,
    failures: AtomicU64,
}

impl Scene<'_> {
    /// Somebody was answered, or learned that there will be no answer.
    fn settled(&self, sent: Instant, has_failed: bool) {
        self.answers.fetch_add(1, Ordering::Relaxed);
        if has_failed {
            self.failures.fetch_add(1, Ordering::Relaxed);
            let since = sent.max(*self.killed.lock().unwrap());
            let mut longest = self.longest.lock().unwrap();
            *longest = since.elapsed().max(*longest);
        }
    }

    fn open_page(&self, webview: u64, origin: &str) -> Option<Page> {
        let asked = Instant::now();
        let identity = PortIdentity {
            webview,
            ..identity(origin)
        };
        let page = try_open_page_as(&self.browser.client, identity).ok();
        self.settled(asked, page.is_none());
        page
    }
}

/// A document that does this and that.
struct Document<'a> {
    scene: &'a Scene<'a>,
    index: usize,
    random: Random,
    page: Option<Page>,
    sent: BTreeMap<u64, Instant>,
}

/// Something went wrong, as it does when a process is killed.
struct Failed;

impl Document<'_> {
    fn run(mut self) {
        while !self.scene.is_over.load(Ordering::SeqCst) {
            let kills = self.scene.kills.load(Ordering::SeqCst);
            if self.use_a_card().is_ok() {
                self.scene.good[self.index].store(kills, Ordering::SeqCst);
            }
            // Some go and come again, with what they had open.
            if self.random.one_in(8)
                && let Some(page) = self.page.take()
                && self.random.one_in(2)
            {
                self.scene.browser.client.close_port(page.id);
            }
        }
    }

    fn send(&mut self, body: RequestBody) -> Result<RequestId, Failed> {
        let page = self.page.as_mut().ok_or(Failed)?;
        let request = page.send(body);
        self.sent.insert(request.0, Instant::now());
        Ok(request)
    }

    /// Waits for an answer, which comes in any case.
    fn wait(&mut self, request: RequestId) -> Result<ReplyBody, Failed> {
        let sent = self.sent.remove(&request.0).expect("a request");
        let page = self.page.as_mut().ok_or(Failed)?;
        let outcome = page.wait(request, PATIENCE);
        self.scene.settled(sent, !matches!(outcome, Ok(Ok(_))));
        match outcome {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(error)) => {
                assert!(
                    matches!(error.kind, ErrorKind::Io | ErrorKind::Closed),
                    "{error:?}"
                );
                Err(Failed)
            }
            Err(PortClosed) => {
                self.page = None;
                self.sent.clear();
                Err(Failed)
            }
        }
    }

    fn ask(&mut self, body: RequestBody) -> Result<ReplyBody, Failed> {
        let request = self.send(body)?;
        self.wait(request)
    }

    fn open_channel(&mut self) -> Result<ChannelId, Failed> {
        if self.page.is_none() {
            let webview = self.index as u64;
            self.page = Some(self.scene.open_page(webview, ORIGIN).ok_or(Failed)?);
        }
        let readers = match self.ask(RequestBody::GetReaders)? {
            ReplyBody::Readers(readers) => readers,
            other => panic!("{other:?}"),
        };
        let readers: Vec<ReaderInfo> = readers.into_iter().filter(|info| info.present).collect();
        // A monitor that was killed has to tell of them again.
        if readers.len() < self.scene.cards {
            return Err(Failed);
        }
        let reader = self.random.below(readers.len() as u64) as usize;
        let session = match self.ask(RequestBody::OpenSession(readers[reader].id))? {
            ReplyBody::Session(session) => session.id,
            other => panic!("{other:?}"),
        };
        match self.ask(open(session, &echo::AID))? {
            ReplyBody::Channel(channel) => Ok(channel.id),
            other => panic!("{other:?}"),
        }
    }

    fn use_a_card(&mut self) -> Result<(), Failed> {
        let channel = self.open_channel()?;
        let mut commands = Vec::new();
        for number in 0..1 + self.random.below(6) {
            let length = self.random.below(100) as usize;
            let data = vec![self.index as u8 * 16 + number as u8; length];
            let ins = match self.random.one_in(4) {
                true => echo::INS_DELAY,
                false => echo::INS_ECHO,
            };
            let request = self.send(command(channel, ins, 1, &data))?;
            commands.push((request, [&data[..], &[0x90, 0x00]].concat()));
        }
        let closing = match self.random.one_in(3) {
            true => None,
            false => Some(self.send(RequestBody::CloseChannel(channel))?),
        };
        let mut outcome = Ok(());
        for (request, expected) in commands {
            match self.wait(request) {
                Ok(reply) => assert_eq!(reply, ReplyBody::Response(expected)),
                Err(Failed) => outcome = Err(Failed),
            }
            if self.page.is_none() {
                return Err(Failed);
            }
        }
        if let Some(closing) = closing {
            self.wait(closing)?;
        }
        self.ask(RequestBody::Shutdown)?;
        outcome
    }
}

/// What the user and documents were told of, with the store that has to remember it.
struct Memory {
    store: tempfile::TempDir,
    granted: Mutex<BTreeSet<String>>,
    revoked: Mutex<BTreeSet<String>>,
    next: AtomicU64,
}

/// Documents that were never there before. The user allows each to use a reader, for good.
fn newcomers(scene: &Scene<'_>, memory: &Memory, mut random: Random) {
    while !scene.is_over.load(Ordering::SeqCst) {
        let number = memory.next.fetch_add(1, Ordering::SeqCst);
        if memory.granted.lock().unwrap().len() >= GRANTS {
            return;
        }
        let origin = format!("https://shop{number}.example");
        let webview = 1000 + number;
        if let Some(mut page) = scene.open_page(webview, &origin) {
            scene.browser.client.user_input(webview);
            let sent = Instant::now();
            let request = page.send(RequestBody::GetReaders);
            let outcome = page.wait(request, PATIENCE);
            let readers = match outcome {
                Ok(Ok(ReplyBody::Readers(readers))) => Some(readers),
                _ => None,
            };
            scene.settled(sent, readers.is_none());
            if readers.is_some_and(|readers| !readers.is_empty()) {
                memory.granted.lock().unwrap().insert(origin);
            }
        }
        std::thread::sleep(Duration::from_millis(random.below(200)));
    }
}

/// What the page of tokens shows. Where the broker has just died, the page asks again.
fn overview(browser: &Browser) -> Overview {
    wait_for("an overview", || {
        let (sender, receiver) = mpsc::channel();
        browser.client.overview(Box::new(move |overview| {
            let _ = sender.send(overview);
        }));
        receiver.recv_timeout(PATIENCE).ok()
    })
}

fn grants(browser: &Browser) -> BTreeMap<String, GrantId> {
    let overview = overview(browser);
    assert_eq!(overview.problem, None);
    let grants = overview.grants.into_iter();
    grants
        .filter_map(|grant| {
            let origin: Origin = grant.origin?;
            Some((origin.as_str().to_owned(), grant.id?))
        })
        .collect()
}

/// Nothing is lost that somebody was told of.
fn assert_remembered(browser: &Browser, memory: &Memory) {
    let granted = memory.granted.lock().unwrap().clone();
    let revoked = memory.revoked.lock().unwrap().clone();
    let grants = grants(browser);
    for origin in &granted {
        assert!(
            grants.contains_key(origin) || memory.revoked.lock().unwrap().contains(origin),
            "the grant of {origin} is lost"
        );
    }
    for origin in &revoked {
        assert!(!grants.contains_key(origin), "{origin} has it back");
    }
}

/// The user ends a grant, and sees that it has ended.
fn revoke_one(browser: &Browser, memory: &Memory, random: &mut Random) {
    let granted = memory.granted.lock().unwrap().clone();
    if granted.is_empty() {
        return;
    }
    let which = random.below(granted.len() as u64) as usize;
    let origin = granted.into_iter().nth(which).expect("a grant");
    let Some(id) = grants(browser).get(&origin).copied() else {
        return;
    };
    memory.granted.lock().unwrap().remove(&origin);
    browser.client.revoke(id);
    if !grants(browser).contains_key(&origin) {
        memory.revoked.lock().unwrap().insert(origin);
    }
}

/// What is done how often, with which processes.
struct Plan<'a> {
    cycles: u32,
    kinds: &'a [&'a str],
    is_pcsc: bool,
    cards: usize,
}

/// What was seen.
#[derive(Debug, Default)]
struct Seen {
    kills: BTreeMap<String, u32>,
    answers: u64,
    failures: u64,
    longest: Duration,
    longest_recovery: Duration,
}

/// Kills processes of one browser after the other.
fn lane(plan: &Plan<'_>, mut random: Random) -> Seen {
    let memory = Memory {
        store: tempfile::tempdir().expect("a folder"),
        granted: Mutex::default(),
        revoked: Mutex::default(),
        next: AtomicU64::new(0),
    };
    let mut seen = Seen::default();
    let mut left = plan.cycles;
    while left > 0 {
        let cycles = left.min(CYCLES_OF_BROWSER);
        left -= cycles;
        let store = Some(memory.store.path().to_owned());
        let browser = Browser::with_user(plan.is_pcsc, store, Arc::new(Generous));
        browser.grant(ORIGIN);
        kill_processes(plan, cycles, &browser, &memory, &mut random, &mut seen);
        let binary = browser.binary().to_owned();
        drop(browser);
        wait_for("the processes' end", || {
            processes_of(&binary, None).is_empty().then_some(())
        });
    }
    seen
}

fn kill_processes(
    plan: &Plan<'_>,
    cycles: u32,
    browser: &Browser,
    memory: &Memory,
    random: &mut Random,
    seen: &mut Seen,
) {
    let scene = Scene {
        browser,
        cards: plan.cards,
        is_over: AtomicBool::new(false),
        kills: AtomicU64::new(1),
        killed: Mutex::new(Instant::now()),
        good: Default::default(),
        longest: Mutex::default(),
        answers: AtomicU64::new(0),
        failures: AtomicU64::new(0),
    };
    std::thread::scope(|scope| {
        // However it ends, the documents do.
        let _end = End(&scene.is_over);
        for index in 0..DOCUMENTS {
            let document = Document {
                scene: &scene,
                index,
                random: Random(random.next()),
                page: None,
                sent: BTreeMap::new(),
            };
            scope.spawn(move || document.run());
        }
        let newcomer = Random(random.next());
        let (scene, memory) = (&scene, memory);
        scope.spawn(move || newcomers(scene, memory, newcomer));
        for _ in 0..cycles {
            std::thread::sleep(Duration::from_micros(random.below(20_000)));
            let kind = kill_one(plan.kinds, scene, random);
            *seen.kills.entry(kind).or_default() += 1;
            let kills = scene.kills.load(Ordering::SeqCst);
            let killed = Instant::now();
            wait_for("all documents to have done what they want", || {
                let all = scene.good.iter();
                let mut all = all.map(|good| good.load(Ordering::SeqCst));
                all.all(|good| good >= kills).then_some(())
            });
            seen.longest_recovery = seen.longest_recovery.max(killed.elapsed());
            assert_remembered(browser, memory);
            if random.one_in(4) {
                revoke_one(browser, memory, random);
            }
        }
    });
    assert_nothing_is_left(browser);
    seen.answers += scene.answers.into_inner();
    seen.failures += scene.failures.into_inner();
    seen.longest = seen.longest.max(scene.longest.into_inner().unwrap());
    assert!(seen.longest < PROMPTLY, "{seen:?}");
}

struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Kills a process of one of the kinds, as soon as there is one.
fn kill_one(kinds: &[&str], scene: &Scene<'_>, random: &mut Random) -> String {
    wait_for("a process to kill", || {
        let kind = kinds[random.below(kinds.len() as u64) as usize];
        let processes = scene.browser.processes(kind);
        let pid: Pid = *processes.get(random.below(processes.len().max(1) as u64) as usize)?;
        let mut killed = scene.killed.lock().unwrap();
        // It may have ended by itself.
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok()?;
        *killed = Instant::now();
        scene.kills.fetch_add(1, Ordering::SeqCst);
        Some(kind.to_owned())
    })
}

/// When all documents have gone, the broker has no more than it began with.
fn assert_nothing_is_left(browser: &Browser) {
    // At least one has to be there to look at.
    let page = wait_for("a port", || browser.try_open_page(ORIGIN).ok());
    let broker = browser.process("broker").as_raw_nonzero();
    let count = |folder: &str| {
        // Nobody else but root may look.
        fs::read_dir(format!("/proc/{broker}/{folder}")).map_or(0, Iterator::count)
    };
    let deadline = Instant::now() + CALM;
    loop {
        let (descriptors, threads) = (count("fd"), count("task"));
        let workers = processes_of(browser.binary(), None).len() - 1;
        // Its own; two for the port, and two for each worker.
        let most = 16 + 2 + 2 * workers;
        if descriptors <= most && threads <= 4 {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "{descriptors} descriptors, {threads} threads, {workers} workers"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(page);
}

/// What this process has of the machine.
fn taken() -> (usize, usize) {
    let count = |folder| fs::read_dir(folder).expect("a folder").count();
    (count("/proc/self/fd"), count("/proc/self/task"))
}

fn run(plan: &Plan<'_>, lanes: u32) {
    let seed = seed();
    let before = taken();
    let seen: Vec<Seen> = std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..lanes)
            .map(|lane_number| {
                let cycles = plan.cycles / lanes + u32::from(lane_number < plan.cycles % lanes);
                let plan = Plan { cycles, ..*plan };
                let random = Random(seed ^ (u64::from(lane_number) << 32));
                scope.spawn(move || lane(&plan, random))
            })
            .collect();
        lanes
            .into_iter()
            .map(|lane| lane.join().expect("a lane"))
            .collect()
    });
    for seen in &seen {
        eprintln!("{seen:?}");
    }
    let kills: u32 = seen.iter().flat_map(|seen| seen.kills.values()).sum();
    assert_eq!(kills, plan.cycles);
    // Threads that wait for processes end with them.
    wait_for("this process to have no more than before", || {
        let after = taken();
        (after.0 <= before.0 + 2 && after.1 <= before.1).then_some(())
    });
}

#[test]
fn whatever_is_killed_everybody_is_answered_and_nothing_is_lost() {
    let plan = Plan {
        cycles: cycles(CYCLES),
        kinds: &["broker", "virtual-card", "virtual-card"],
        is_pcsc: false,
        cards: 1,
    };
    run(&plan, LANES);
}

#[test]
fn so_it_is_with_readers() {
    let pcscd = Pcscd::start().expect("pcscd");
    let card = |profile| VirtualCard::from_profile(profile).expect("a profile");
    let _first = pcscd.insert(0, card("default")).expect("a card");
    let _second = pcscd.insert(1, card("t0")).expect("a card");
    let plan = Plan {
        cycles: cycles(PCSC_CYCLES),
        kinds: &["broker", "pcsc-reader", "pcsc-reader", "pcsc-monitor"],
        is_pcsc: true,
        // The embedded one as well.
        cards: 3,
    };
    run(&plan, 1);
}
