/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What goes wrong with a machine: full and read-only disks, damaged files, no descriptors left, and processes that stand
//! still, one of them or all, as in a machine that sleeps.
//!
//! Processes stand still for some seconds. `TOKEN_SUSPEND_SECONDS=60` makes it a minute.
//!
//! This program is its own harness: its arguments say which main process it plays.

mod common;

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use common::*;
use libtest_mimic::{Arguments, Failed, Trial};
use rustix::process::{Pid, Signal};
use token_client::{ClientConfig, TokenClient};
use token_traits::port::{ChannelId, RequestBody, RequestId};
use token_traits::prompt::{
    AnswerCallback, Overview, PromptAnswer, PromptHost, PromptId, PromptRequest,
};
use token_traits::{ErrorKind, TokenBroker};
use virtual_card::applets::echo;

/// The main process gives a broker up that takes longer than this for anything.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

type Test = fn() -> Result<(), Failed>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["main-process", "full", folder] => {
            on_a_full_disk(Path::new(folder));
            return ExitCode::SUCCESS;
        }
        ["main-process", "read-only", folder] => {
            on_a_read_only_disk(Path::new(folder));
            return ExitCode::SUCCESS;
        }
        ["main-process", "suspended"] => {
            suspended_main_process();
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    let tests: [(&str, Test); 8] = [
        ("a full disk", || on_a_disk("full")),
        ("a read-only disk", || on_a_disk("read-only")),
        ("a damaged store", a_damaged_store),
        ("no descriptors left", no_descriptors_left),
        ("a broker that stands still", || standing_still(&["broker"])),
        ("a worker that stands still", || {
            standing_still(&["virtual-card"])?;
            a_worker_that_stands_still_too_long()
        }),
        ("broker and worker that stand still", || {
            standing_still(&["broker", "virtual-card"])
        }),
        ("a machine that sleeps", a_machine_that_sleeps),
    ];
    let tests = tests.map(|(name, test)| Trial::test(name, test));
    libtest_mimic::run(&Arguments::from_args(), tests.into()).exit_code()
}

/// Allows every reader for good, and counts.
#[derive(Default)]
struct Generous {
    asked: AtomicUsize,
}

impl Generous {
    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl PromptHost for Generous {
    fn show(&self, _request: PromptRequest, answer: AnswerCallback) {
        self.asked.fetch_add(1, Ordering::SeqCst);
        answer(PromptAnswer::Chosen {
            index: 0,
            remember: true,
        });
    }

    fn withdraw(&self, _id: PromptId) {}
}

fn browser(store: &Path) -> (Browser, Arc<Generous>) {
    let user = Arc::new(Generous::default());
    let browser = Browser::with_user(false, Some(store.to_owned()), user.clone());
    browser.grant(ORIGIN);
    (browser, user)
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

fn granted(browser: &Browser) -> Vec<String> {
    let grants = overview(browser).grants.into_iter();
    let by_the_user = grants.filter(|grant| grant.id.is_some());
    by_the_user
        .filter_map(|grant| Some(grant.origin?.as_str().to_owned()))
        .collect()
}

/// A document of that origin gets a reader, whether the user is asked or has been before.
fn assert_gets_a_reader(browser: &Browser, origin: &str) {
    browser.client.user_input(1);
    let mut page = browser.try_open_page(origin).expect("a port");
    assert_eq!(page.readers().len(), 1);
}

/// All is as it should be, for a document that is allowed everything.
fn assert_works(browser: &Browser) {
    let mut page = wait_for("a port", || browser.try_open_page(ORIGIN).ok());
    let channel = page.open_echo();
    page.assert_echoes(channel, b"all is well");
}

fn kill_broker(browser: &Browser) {
    let broker = browser.process("broker");
    kill(broker);
    wait_for("its end", || {
        (!browser.processes("broker").contains(&broker)).then_some(())
    });
}

// Disks.

/// Has it done by a process that may mount something.
fn on_a_disk(what: &str) -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    let output = command
        .arg("--mount")
        .arg(std::env::current_exe()?)
        .args(["main-process", what])
        .arg(folder.path())
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned().into())
}

fn mount(folder: &Path, options: &str) {
    let status = Command::new("mount")
        .args(["-t", "tmpfs", "-o", options, "tmpfs"])
        .arg(folder)
        .status()
        .expect("mount");
    assert!(status.success());
}

/// Takes what is left of the disk.
fn fill(folder: &Path) -> PathBuf {
    let path = folder.join("filler");
    let mut file = fs::File::create(&path).expect("a file");
    for length in [4096, 1] {
        while file.write_all(&vec![0; length]).is_ok() {}
    }
    path
}

fn on_a_full_disk(folder: &Path) {
    mount(folder, "size=256k");
    let (browser, user) = browser(folder);
    assert_gets_a_reader(&browser, "https://first.example");
    assert_eq!(overview(&browser).problem, None);

    let filler = fill(folder);
    assert_gets_a_reader(&browser, "https://second.example");
    let problem = wait_for("the user to be told", || overview(&browser).problem);
    assert!(problem.contains("not remembered"), "{problem}");
    assert_works(&browser);
    let first = overview(&browser).grants.into_iter().find(|grant| {
        let origin = grant.origin.as_ref();
        origin.is_some_and(|origin| origin.as_str() == "https://first.example")
    });
    let first = first.and_then(|grant| grant.id).expect("the first grant");
    browser.client.revoke(first);
    assert_eq!(granted(&browser), ["https://second.example"]);

    // As soon as there is room, it is remembered after all.
    fs::remove_file(filler).expect("a file");
    wait_for("the problem to be over", || {
        overview(&browser).problem.is_none().then_some(())
    });
    kill_broker(&browser);
    assert_eq!(granted(&browser), ["https://second.example"]);
    assert_gets_a_reader(&browser, "https://second.example");
    assert_eq!(user.asked(), 2);

    // What was remembered is there, even if there never is room again.
    fill(folder);
    assert_gets_a_reader(&browser, "https://third.example");
    wait_for("the user to be told", || overview(&browser).problem);
    kill_broker(&browser);
    assert_eq!(granted(&browser), ["https://second.example"]);
    assert_works(&browser);
}

fn on_a_read_only_disk(folder: &Path) {
    mount(folder, "size=1m");
    {
        let (browser, _) = browser(folder);
        assert_gets_a_reader(&browser, "https://first.example");
    }
    // As long as the last broker has not gone, the disk is in use.
    wait_for("the disk to be free", || {
        let remount = |options: &str| {
            let mut command = Command::new("mount");
            command.args(["-o", options]).arg(folder);
            command.stderr(Stdio::null()).status().expect("mount")
        };
        remount("remount,ro").success().then_some(())
    });
    let (browser, user) = browser(folder);
    assert_gets_a_reader(&browser, "https://first.example");
    assert_eq!(user.asked(), 0, "it is remembered");
    assert_gets_a_reader(&browser, "https://second.example");
    assert_eq!(user.asked(), 1);
    let problem = wait_for("the user to be told", || overview(&browser).problem);
    assert!(problem.contains("not remembered"), "{problem}");
    assert_works(&browser);
    kill_broker(&browser);
    assert_eq!(granted(&browser), ["https://first.example"]);
    assert_works(&browser);
}

fn a_damaged_store() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("tokens.sqlite");
    {
        let (browser, _) = browser(folder.path());
        for number in 0..5 {
            assert_gets_a_reader(&browser, &format!("https://shop{number}.example"));
        }
        assert_eq!(granted(&browser).len(), 5);
    }
    let whole = fs::read(&path)?;
    for round in 0..24_usize {
        let mut bytes = whole.clone();
        match round {
            // Cut, or of zeros.
            0 => bytes.truncate(whole.len() / 2),
            1 => bytes.truncate(100),
            2 => bytes.fill(0),
            // A part of it is of another.
            _ => {
                let begin = round * 2_654_435_761 % bytes.len();
                let end = bytes.len().min(begin + 40 * round);
                bytes[begin..end].fill((round as u8).wrapping_mul(37));
            }
        }
        fs::write(&path, bytes)?;
        let (browser, _) = browser(folder.path());
        assert_works(&browser);
        let broker = browser.process("broker");
        assert_gets_a_reader(&browser, "https://new.example");
        assert!(granted(&browser).len() <= 6);
        assert_eq!(browser.process("broker"), broker, "round {round}");
    }
    Ok(())
}

// Descriptors.

/// A script that starts brokers with less of something than they want.
fn with_limit(folder: &Path, limit: &str) -> Result<PathBuf, Failed> {
    let script = folder.join("token-broker");
    let broker = env!("CARGO_BIN_EXE_token-broker");
    let text = format!("#!/bin/sh\n[ \"$1\" = broker ] && {limit}\nexec {broker} \"$@\"\n");
    fs::write(&script, text)?;
    fs::set_permissions(&script, PermissionsExt::from_mode(0o700))?;
    Ok(script)
}

fn no_descriptors_left() -> Result<(), Failed> {
    // 64 that it keeps for itself, two for each of 32 workers, and for 64 ports.
    const PORTS: usize = 64;
    let folder = tempfile::tempdir()?;
    let config = ClientConfig {
        broker_binary: with_limit(folder.path(), "ulimit -n 256")?,
        virtual_card: Some("default".into()),
        ..nothing()
    };
    let client = TokenClient::new(config, Arc::new(Nobody));
    grant(&client, ORIGIN);
    let mut pages = Vec::new();
    let mut closed = 0;
    for _ in 0..100 {
        let mut page = try_open_page(&client, ORIGIN)?;
        let request = page.send(RequestBody::GetReaders);
        match page.wait(request, PATIENCE) {
            Ok(reply) => {
                reply?;
                pages.push(page);
            }
            Err(PortClosed) => closed += 1,
        }
    }
    assert_eq!((pages.len(), closed), (PORTS, 100 - PORTS));
    // Those that are open go on, with a card.
    let channel = pages[0].open_echo();
    for page in &mut pages {
        assert_eq!(page.readers().len(), 1);
    }
    pages[0].assert_echoes(channel, b"still here");
    // The main process hands over many at once, and there is room for as many as have gone.
    let all = thread::scope(|scope| {
        let open = || {
            let client = &client;
            scope.spawn(move || {
                let mut page = try_open_page(client, ORIGIN).expect("a port");
                let request = page.send(RequestBody::GetReaders);
                page.wait(request, PATIENCE).is_ok()
            })
        };
        let all: Vec<_> = (0..20).map(|_| open()).collect();
        let all = all.into_iter().map(|one| one.join().expect("an outcome"));
        all.filter(|is_open| *is_open).count()
    });
    assert_eq!(all, 0);
    pages.drain(1..).for_each(|page| client.close_port(page.id));
    wait_for("room", || {
        let mut page = try_open_page(&client, ORIGIN).ok()?;
        let request = page.send(RequestBody::GetReaders);
        page.wait(request, PATIENCE).ok()
    })?;
    pages[0].assert_echoes(channel, b"and still the same broker");
    Ok(())
}

// Processes that stand still.

fn standstill() -> Duration {
    let seconds = std::env::var("TOKEN_SUSPEND_SECONDS").ok();
    let seconds = seconds.map(|seconds| seconds.parse().expect("a number"));
    Duration::from_secs(seconds.unwrap_or(3))
}

fn signal(pids: &[Pid], signal: Signal) -> Result<(), Failed> {
    for pid in pids {
        let sent = rustix::process::kill_process(*pid, signal);
        sent.map_err(|error| format!("process {pid}: {error}"))?;
    }
    Ok(())
}

/// What documents wait for: a command that the card carries out, some that wait for it, and answers of the broker itself.
fn ask_for_this_and_that(page: &mut Page, channel: ChannelId) -> Vec<RequestId> {
    let mut requests = vec![page.send(slow(channel, 20))];
    for number in 0..10 {
        requests.push(page.send(command(channel, echo::INS_ECHO, 0, &[number])));
        requests.push(page.send(RequestBody::GetReaders));
    }
    requests
}

/// How long a command may take for which the page names no limit. A minute is longer, so it may have failed meanwhile.
const DEFAULT_LIMIT: Duration = Duration::from_secs(30);

fn assert_answered(reply: Reply) {
    match reply {
        Ok(_) => {}
        Err(error) => {
            let is_late = matches!(error.kind, ErrorKind::Io | ErrorKind::Closed);
            assert!(is_late && standstill() >= DEFAULT_LIMIT, "{error:?}");
        }
    }
}

/// Everybody waits while these processes stand still, and gets the answer when they go on; or learns that there is none.
fn standing_still(kinds: &[&str]) -> Result<(), Failed> {
    let time = standstill();
    // A broker that stands still for too long is replaced.
    let is_given_up = kinds.contains(&"broker") && time >= ANSWER_LIMIT;
    let folder = tempfile::tempdir().expect("a folder");
    let (browser, _) = browser(folder.path());
    assert_gets_a_reader(&browser, "https://shop.example");
    let mut page = browser.open_page();
    let channel = page.open_echo();
    let pids: Vec<Pid> = kinds.iter().map(|kind| browser.process(kind)).collect();
    let mut requests = ask_for_this_and_that(&mut page, channel);
    thread::sleep(Duration::from_millis(50));
    signal(&pids, Signal::STOP)?;
    let stopped = Instant::now();
    requests.extend(ask_for_this_and_that(&mut page, channel));
    let (sender, opened) = mpsc::channel();
    let callback = move |port| {
        let _ = sender.send(port);
    };
    let id = browser
        .client
        .open_port(identity(ORIGIN), Box::new(callback));
    thread::sleep(time);
    for pid in &pids {
        // Whoever was given up has been killed.
        let _ = rustix::process::kill_process(*pid, Signal::CONT);
    }
    let went_on = Instant::now();
    let mut settled = 0;
    for request in requests {
        match page.wait(request, PATIENCE) {
            Ok(reply) => {
                assert_answered(reply);
                settled += 1;
            }
            Err(PortClosed) => {
                assert!(is_given_up, "{kinds:?}: the port has closed");
                break;
            }
        }
    }
    if !is_given_up {
        assert_eq!(settled, 42);
    }
    if time < ANSWER_LIMIT {
        page.assert_echoes(channel, b"the same card, the same channel");
        let same: Vec<Pid> = kinds.iter().map(|kind| browser.process(kind)).collect();
        assert_eq!(same, pids);
    }
    assert!(went_on.elapsed() < PROMPTLY * 2, "{:?}", went_on.elapsed());
    let port = opened.recv_timeout(PATIENCE).expect("an outcome");
    match port {
        Ok(port) => assert_eq!(Page::new(id, port).readers().len(), 1),
        Err(error) => {
            assert!(is_given_up, "{error:?} after {:?}", stopped.elapsed());
            assert_eq!(error.kind, ErrorKind::Io);
        }
    }
    assert_works(&browser);
    assert_eq!(granted(&browser), ["https://shop.example"]);
    Ok(())
}

/// Nobody waits longer than they want to for a worker that stands still.
fn a_worker_that_stands_still_too_long() -> Result<(), Failed> {
    let browser = Browser::start(false);
    let mut page = browser.open_page();
    let channel = page.open_echo();
    let worker = browser.process("virtual-card");
    signal(&[worker], Signal::STOP)?;
    let RequestBody::Transmit { command, .. } = slow(channel, 0) else {
        unreachable!();
    };
    let asked = Instant::now();
    let reply = page.ask(RequestBody::Transmit {
        channel,
        command,
        timeout_ms: Some(300),
    });
    assert_eq!(kind(reply), ErrorKind::Io);
    assert!(asked.elapsed() < PROMPTLY, "{:?}", asked.elapsed());
    wait_for("its end", || {
        (!browser.processes("virtual-card").contains(&worker)).then_some(())
    });
    let channel = page.open_echo();
    page.assert_echoes(channel, b"another one");
    Ok(())
}

/// A main process that says what its processes are, and is stopped with all of them.
fn suspended_main_process() {
    let folder = tempfile::tempdir().expect("a folder");
    let (browser, _) = browser(folder.path());
    assert_gets_a_reader(&browser, "https://shop.example");
    let mut page = browser.open_page();
    let mut channel = page.open_echo();
    let broker = browser.process("broker");
    for round in 0..2 {
        // The last standstill is over.
        io::stdin().read_line(&mut String::new()).expect("a line");
        let pids = ["broker", "virtual-card"].map(|kind| browser.process(kind));
        let requests = ask_for_this_and_that(&mut page, channel);
        // A second broker would not be asked before this one has had its time.
        let (sender, opened) = mpsc::channel();
        let callback = move |port| {
            let _ = sender.send(port);
        };
        let id = browser
            .client
            .open_port(identity(ORIGIN), Box::new(callback));
        let [broker, worker] = pids.map(Pid::as_raw_nonzero);
        println!("{broker} {worker}");
        io::stdout().flush().expect("an output");
        // It stands still while it waits.
        for request in requests {
            let reply = page.wait(request, Duration::from_secs(600));
            assert_answered(reply.expect("an open port"));
        }
        let port = opened.recv_timeout(PATIENCE).expect("an outcome");
        assert_eq!(Page::new(id, port.expect("a port")).readers().len(), 1);
        if standstill() >= DEFAULT_LIMIT {
            channel = page.open_echo();
        }
        page.assert_echoes(channel, b"round");
        println!("awake {round}");
        io::stdout().flush().expect("an output");
    }
    assert_eq!(browser.process("broker"), broker);
    assert_eq!(granted(&browser), ["https://shop.example"]);
    assert_works(&browser);
}

/// Everything stands still, for longer than anybody would wait for anybody: nobody is to blame for it.
fn a_machine_that_sleeps() -> Result<(), Failed> {
    let time = standstill().max(ANSWER_LIMIT + Duration::from_secs(2));
    let mut main_process = Command::new(std::env::current_exe()?)
        .args(["main-process", "suspended"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let output = main_process.stdout.take().ok_or("no output")?;
    let mut input = main_process.stdin.take().ok_or("no input")?;
    let mut lines = BufReader::new(output).lines();
    let main_pid = Pid::from_child(&main_process);
    let outcome = (|| -> Result<(), Failed> {
        for round in 0..2 {
            writeln!(input)?;
            let line = lines.next().ok_or("it has ended")??;
            let pids = line.split(' ').map(|pid| Pid::from_raw(pid.parse().ok()?));
            let pids: Option<Vec<Pid>> = pids.collect();
            let mut pids = pids.ok_or("no process ids")?;
            pids.push(main_pid);
            thread::sleep(Duration::from_millis(20));
            signal(&pids, Signal::STOP)?;
            thread::sleep(time);
            // Who wakes up first finds that the others do not answer yet.
            if round == 1 {
                pids.reverse();
            }
            for pid in &pids {
                signal(&[*pid], Signal::CONT)?;
                thread::sleep(Duration::from_millis(200));
            }
            let line = lines.next().ok_or("it has ended")??;
            if line != format!("awake {round}") {
                return Err(line.into());
            }
        }
        Ok(())
    })();
    ended(main_process, outcome)
}

/// Waits for the end of a main process that has nothing more to do.
fn ended(mut process: Child, outcome: Result<(), Failed>) -> Result<(), Failed> {
    if outcome.is_err() {
        let _ = process.kill();
    }
    let deadline = Instant::now() + PATIENCE;
    while process.try_wait()?.is_none() {
        if Instant::now() > deadline {
            let _ = process.kill();
        }
        thread::sleep(Duration::from_millis(10));
    }
    let output = process.wait_with_output()?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    match outcome {
        Ok(()) if output.status.success() => Ok(()),
        Ok(()) => Err(format!("{}: {errors}", output.status).into()),
        Err(error) => Err(format!("{error:?}: {errors}").into()),
    }
}
