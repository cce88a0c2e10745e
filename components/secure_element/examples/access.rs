/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Decides requests by the rules of an ARA-M.
//!
//! ```text
//! cargo run --release -p secure_element --example access -- RULES REQUESTS
//! ```
//!
//! RULES is a file with the hexadecimal digits of an ARA-M's rules, the value of FF40. REQUESTS is a
//! file with a request in each line:
//!
//! ```text
//! AID|default  HASH[,HASH]  [COMMAND]
//! ```
//!
//! `default` is the implicitly selected application. Of two hashes the first is the SHA-256 and the
//! second the SHA-1; of one the length tells. COMMAND is a command, of which the four bytes of the
//! header count. In both files, `#` begins a comment; lines with nothing else are skipped.
//!
//! For each request there is one line: `ALLOW`, or `DENY` and the reason. If the rules cannot be
//! read, every request is denied. A request that cannot be read is denied, and the program ends with
//! status 2.

use std::error::Error;
use std::io::{self, BufWriter, Write};
use std::process::ExitCode;
use std::{env, fs};

use secure_element::access::{Access, AppId, RuleSet, RulesError, Target, parse_rules};
use secure_element::apdu::Header;
use secure_element::channel::Aid;
use secure_element::class_byte;

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

struct Request {
    target: Target,
    app: AppId,
    command: Option<Header>,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("access: {error}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<()> {
    let arguments: Vec<_> = env::args_os().skip(1).collect();
    let [rules, requests] = arguments.as_slice() else {
        return Err("usage: access RULES REQUESTS".into());
    };
    let rules = read_rules(&fs::read(rules)?);
    let requests = fs::read_to_string(requests)?;
    let mut output = BufWriter::new(io::stdout().lock());
    let result = answer(&rules, &requests, &mut output);
    output.flush()?;
    result
}

/// Writes an answer to each request. Fails after the last if one of them cannot be read.
fn answer(rules: &Result<RuleSet, String>, requests: &str, output: &mut impl Write) -> Result<()> {
    let mut first_error = Ok(());
    for (number, line) in requests.lines().enumerate() {
        let line = without_comment(line);
        if line.is_empty() {
            continue;
        }
        let reason = match read_request(line) {
            Ok(request) => denial(rules, &request),
            Err(error) => {
                let reason = format!("line {}: {error}", number + 1);
                first_error = first_error.and(Err(reason.clone().into()));
                Some(reason)
            }
        };
        match reason {
            None => writeln!(output, "ALLOW")?,
            Some(reason) => writeln!(output, "DENY {reason}")?,
        }
    }
    first_error
}

fn without_comment(line: &str) -> &str {
    let end = line.find('#').unwrap_or(line.len());
    line.get(..end).unwrap_or(line).trim()
}

/// The rules, or why there are none.
fn read_rules(file: &[u8]) -> Result<RuleSet, String> {
    let text = str::from_utf8(file).map_err(|_| "the rules are not hexadecimal digits")?;
    let digits: String = text
        .lines()
        .map(without_comment)
        .flat_map(str::split_whitespace)
        .collect();
    let body = hex(&digits).ok_or("the rules are not pairs of hexadecimal digits")?;
    parse_rules(&body)
        .map(RuleSet::new)
        .map_err(|error: RulesError| error.to_string())
}

fn denial(rules: &Result<RuleSet, String>, request: &Request) -> Option<String> {
    let access = match rules {
        Ok(rules) => rules.channel_access(request.target, &request.app),
        Err(reason) => return Some(reason.clone()),
    };
    let Some(mut command) = request.command else {
        return match access {
            Access::Never(denial) => Some(denial.to_string()),
            _ => None,
        };
    };
    match class_byte::without_channel(command.cla) {
        Ok(class) => command.cla = class,
        Err(error) => return Some(error.to_string()),
    }
    match access {
        Access::Never(denial) => Some(denial.to_string()),
        access if access.allows_command(command) => None,
        _ => Some("no filter matches the command".into()),
    }
}

fn read_request(line: &str) -> Result<Request> {
    let mut words = line.split_whitespace();
    let (Some(target), Some(hashes)) = (words.next(), words.next()) else {
        return Err("a request is AID|default HASH[,HASH] [COMMAND]".into());
    };
    let target = if target == "default" {
        Target::Implicit
    } else {
        Target::Application(Aid::new(&bytes(target)?)?)
    };
    let app = read_hashes(hashes)?;
    let command = match words.next() {
        None => None,
        Some(command) => match bytes(command)?.as_slice() {
            [cla, ins, p1, p2, ..] => Some(Header::new(*cla, *ins, *p1, *p2)),
            _ => return Err("a command has at least 4 bytes".into()),
        },
    };
    if words.next().is_some() {
        return Err("there is something behind the command".into());
    }
    Ok(Request {
        target,
        app,
        command,
    })
}

fn read_hashes(hashes: &str) -> Result<AppId> {
    if let Some((sha256, sha1)) = hashes.split_once(',') {
        let sha256 = bytes(sha256)?.try_into();
        let sha1 = bytes(sha1)?.try_into();
        return match (sha256, sha1) {
            (Ok(sha256), Ok(sha1)) => Ok(AppId::from_hashes(Some(sha256), Some(sha1))),
            _ => Err("of two hashes the first has 32 bytes and the second 20".into()),
        };
    }
    let hash = bytes(hashes)?;
    if let Ok(sha1) = hash.as_slice().try_into() {
        Ok(AppId::from_hashes(None, Some(sha1)))
    } else if let Ok(sha256) = hash.as_slice().try_into() {
        Ok(AppId::from_hashes(Some(sha256), None))
    } else {
        Err("a hash has 20 or 32 bytes".into())
    }
}

fn bytes(digits: &str) -> Result<Vec<u8>> {
    hex(digits).ok_or_else(|| "these are not pairs of hexadecimal digits".into())
}

fn hex(digits: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16);
    pairs
        .iter()
        .map(|[high, low]| Some((digit(*high)? << 4 | digit(*low)?) as u8))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: &[u8] = b"# X may read\nE2 2B E1 1C 4F06A00000015101 C114 1111111111111111111111111111111111111111\n\
        E30A D008 00B00000 FFFF0000\n  E20B E104 C000C100 E303D00101";

    fn answers(rules: &[u8], requests: &str) -> Result<String> {
        let mut output = Vec::new();
        answer(&read_rules(rules), requests, &mut output)?;
        Ok(String::from_utf8(output)?)
    }

    fn rules() -> Vec<u8> {
        let text = String::from_utf8(RULES.to_vec()).unwrap();
        text.replace("E2 2B E1 1C", "E22C E11E").into_bytes()
    }

    const X: &str = "1111111111111111111111111111111111111111";
    const Y: &str = "2222222222222222222222222222222222222222";
    const X256: &str = "1111111111111111111111111111111111111111111111111111111111111111";

    #[test]
    fn requests_are_answered_line_by_line() {
        let requests = format!(
            "# comment\n\
             A00000015101 {X}\n\
             \n\
             a00000015101\t{X256},{X}   00B00102 # comment\n\
             A00000015101 {X} 03B0010200\n\
             A00000015101 {X} 00D60000\n\
             A00000015101 {Y}\n\
             A00000015101 {X256}\n\
             A00000015102 {X}\n\
             default {Y} 80CA9F7F\n\
             default {Y} FFCA9F7F\n"
        );
        let answers = answers(&rules(), &requests).unwrap();
        let expected = "ALLOW\nALLOW\nALLOW\nDENY no filter matches the command\n\
             DENY the rules allow it to others only\n\
             DENY the rules allow it to others only\n\
             DENY no rule allows it\nALLOW\nDENY class byte FF is invalid\n";
        assert_eq!(answers, expected);
    }

    #[test]
    fn rules_that_cannot_be_read_deny_everything() {
        for rules in [
            &b"E20B E104 4F00C100 E303D00102"[..],
            b"E2",
            b"E20",
            b"no digits",
            b"\xFF\xFE",
        ] {
            let requests = format!("default {X}\nA00000015101 {X}");
            let answers = answers(rules, &requests).unwrap();
            assert_eq!(answers.lines().count(), 2);
            assert!(
                answers.lines().all(|line| line.starts_with("DENY ")),
                "{answers}"
            );
        }
        assert!(answers(b"", "default 11").is_err());
        assert_eq!(
            answers(b"", &format!("default {X}")).unwrap(),
            "DENY no rule allows it\n"
        );
    }

    #[test]
    fn requests_that_cannot_be_read_are_errors() {
        for request in [
            "default",
            "A0000001510",
            &format!("xyz {X}"),
            &format!("A0000001510 {X}"),
            &format!("0102030405060708090A0B0C0D0E0F1011 {X}"),
            &format!("default {X}11"),
            &format!("default {X},{X256}"),
            &format!("default {X256},{X},{X}"),
            &format!("default {X256},"),
            &format!("default {X} 00B000"),
            &format!("default {X} 00B0000"),
            &format!("default {X} 00B00000 00"),
        ] {
            let requests = format!("A00000015101 {X}\n{request}\nA00000015101 {X}");
            let mut output = Vec::new();
            let error = answer(&read_rules(&rules()), &requests, &mut output).unwrap_err();
            assert!(error.to_string().starts_with("line 2: "), "{error}");
            let output = String::from_utf8(output).unwrap();
            assert_eq!(output, format!("ALLOW\nDENY {error}\nALLOW\n"));
        }
    }
}
