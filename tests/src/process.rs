/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Processes as `/proc` shows them: trees, kills, and whether anything survived.

use std::fs;
use std::io::{self, Read};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How often a condition is looked at while waiting for it.
const POLL: Duration = Duration::from_millis(5);

/// Waits until `condition` gives something, at most `limit`.
pub fn wait_for<T>(limit: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = condition() {
            return Some(value);
        }
        if Instant::now() >= deadline {
            return None;
        }
        thread::sleep(POLL);
    }
}

/// One process; a later one that reuses its number is another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Its parent's number when it was looked at.
    pub parent: u32,
    /// Its process group when it was looked at.
    pub group: u32,
    /// The command line; empty for a zombie.
    pub arguments: Vec<String>,
    started: u64,
}

impl Process {
    /// Looks at a process. `None` if there is none, or a zombie only.
    pub fn get(pid: u32) -> Option<Process> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in parentheses, may hold anything; the fields begin behind the last one.
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        if matches!(*fields.first()?, "Z" | "X") {
            return None;
        }
        let command_line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        Some(Process {
            pid,
            parent: fields.get(1)?.parse().ok()?,
            group: fields.get(2)?.parse().ok()?,
            started: fields.get(19)?.parse().ok()?,
            arguments: command_line
                .split(|byte| *byte == 0)
                .filter(|argument| !argument.is_empty())
                .map(|argument| String::from_utf8_lossy(argument).into_owned())
                .collect(),
        })
    }

    /// Every process there is.
    pub fn all() -> Vec<Process> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        entries
            .filter_map(|entry| Process::get(entry.file_name().to_str()?.parse().ok()?))
            .collect()
    }

    /// The process `root`, what descends from it, and what is in the process group that it leads.
    pub fn tree(root: u32) -> Vec<Process> {
        let mut rest = Process::all();
        let mut tree: Vec<Process> = Vec::new();
        loop {
            let (found, others): (Vec<_>, Vec<_>) = rest.into_iter().partition(|process| {
                process.pid == root
                    || process.group == root
                    || tree.iter().any(|ancestor| ancestor.pid == process.parent)
            });
            rest = others;
            if found.is_empty() {
                return tree;
            }
            tree.extend(found);
        }
    }

    /// Whether this very process still runs (a zombie does not).
    pub fn is_alive(&self) -> bool {
        Process::get(self.pid).is_some_and(|now| now.started == self.started)
    }

    /// Sends SIGKILL, if this very process still runs.
    pub fn kill(&self) {
        if self.is_alive()
            && let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw)
        {
            // It may end by itself in between.
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    /// The program's file name, as the command line gives it.
    pub fn program(&self) -> &str {
        let path = self.arguments.first().map_or("", String::as_str);
        path.rsplit('/').next().unwrap_or(path)
    }
}

/// Those of `processes` that still run when `limit` has passed; returns early if none does.
pub fn survivors(processes: &[Process], limit: Duration) -> Vec<Process> {
    let alive = || -> Vec<Process> {
        processes
            .iter()
            .filter(|process| process.is_alive())
            .cloned()
            .collect()
    };
    wait_for(limit, || alive().is_empty().then(Vec::new)).unwrap_or_else(alive)
}

/// Runs a command to its end, at most `limit`; then it is killed.
///
/// # Errors
/// If it cannot start, or did not end in time.
pub fn run(command: &mut Command, limit: Duration) -> io::Result<Output> {
    let name = command.get_program().to_string_lossy().into_owned();
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{name}: {error}"));
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(named)?;
    // Pipes are read while it runs, else it could fill one and wait for ever.
    let stdout = child.stdout.take().map(read_to_end);
    let stderr = child.stderr.take().map(read_to_end);
    let status = wait_for(limit, || child.try_wait().transpose());
    let Some(status) = status else {
        child.kill()?;
        child.wait()?;
        return Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("{name} did not end within {limit:?}"),
        ));
    };
    let collect = |reader: Option<thread::JoinHandle<Vec<u8>>>| {
        reader
            .and_then(|reader| reader.join().ok())
            .unwrap_or_default()
    };
    Ok(Output {
        status: status?,
        stdout: collect(stdout),
        stderr: collect(stderr),
    })
}

fn read_to_end(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut text = Vec::new();
        // What came before an error is still worth showing.
        let _ = pipe.read_to_end(&mut text);
        text
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;

    use super::*;

    #[test]
    fn tree_holds_descendants_and_survivors_are_seen() {
        let mut child = Command::new("sh")
            .args(["-c", "sleep 60 & sleep 61; true"])
            .process_group(0)
            .spawn()
            .unwrap();
        let tree = wait_for(Duration::from_secs(10), || {
            let tree = Process::tree(child.id());
            let sleeping = tree
                .iter()
                .filter(|process| process.program() == "sleep")
                .count();
            (sleeping == 2).then_some(tree)
        })
        .unwrap();
        assert_eq!(tree.len(), 3);
        child.kill().unwrap();
        child.wait().unwrap();
        let left = survivors(&tree, Duration::from_millis(50));
        assert_eq!(left.len(), 2, "{left:?}");
        // Orphaned, they are still in the group.
        assert_eq!(Process::tree(child.id()).len(), 2);
        left.iter().for_each(Process::kill);
        assert!(survivors(&tree, Duration::from_secs(10)).is_empty());
    }

    #[test]
    fn commands_end_in_time_or_are_killed() {
        let output = run(
            Command::new("sh").args(["-c", "echo out; echo err >&2; exit 3"]),
            DAY,
        );
        let output = output.unwrap();
        assert_eq!(output.status.code(), Some(3));
        assert_eq!(
            (&*output.stdout, &*output.stderr),
            (&b"out\n"[..], &b"err\n"[..])
        );
        let started = Instant::now();
        let error = run(Command::new("sleep").arg("60"), Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(started.elapsed() < Duration::from_secs(30));
        assert!(run(&mut Command::new("no-such-program"), DAY).is_err());
    }

    const DAY: Duration = Duration::from_secs(86_400);
}
