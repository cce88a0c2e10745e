/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What outlives the broker: the grants that the user wants remembered, and the audit log. One SQLite file in the
//! profile, read at the start and written by a thread of its own.

use std::collections::VecDeque;
use std::fs::{OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError, Sender, SyncSender};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use rusqlite::types::Value;
use rusqlite::{Connection, Row, params};
use secure_element::channel::Aid;
use token_traits::Origin;
use token_traits::prompt::{AuditEntry, GrantId, MAX_NAME_LENGTH};

use crate::access::grants::{
    Grant, KeyName, Lasts, MAX_GRANTS, Party, ReaderName, Subject, TokenName,
};
use crate::keys::{InstallationSecret, OriginList, StoredKey};

/// The file's name.
const FILE: &str = "tokens.sqlite";
/// Entries of the audit log that are kept in memory, for the page of tokens.
pub const AUDIT_SHOWN: usize = 500;
/// Entries of the audit log that are kept in the file.
const AUDIT_KEPT: i64 = 10_000;
/// The audit log is cut to its length after so many new entries.
const AUDIT_SLACK: usize = 100;
/// The layout of the tables below.
const LAYOUT: i64 = 2;
/// Longest subject of a grant that is read from the file, in bytes: PC/SC's own limit for names is 128 characters.
const MAX_SUBJECT: usize = 1024;

const TABLES: &str = "
    CREATE TABLE grants (
        id INTEGER PRIMARY KEY,
        origin TEXT NOT NULL,
        top_level_origin TEXT NOT NULL,
        kind TEXT NOT NULL,
        subject BLOB NOT NULL,
        created INTEGER NOT NULL,
        last_used INTEGER
    ) STRICT;
    CREATE TABLE audit (
        id INTEGER PRIMARY KEY,
        time INTEGER NOT NULL,
        origin TEXT NOT NULL,
        reader TEXT NOT NULL,
        applet BLOB,
        decision TEXT NOT NULL
    ) STRICT;
";

/// What came with layout 2.
const KEY_TABLES: &str = "
    CREATE TABLE secrets (
        name TEXT PRIMARY KEY,
        value BLOB NOT NULL
    ) STRICT;
    CREATE TABLE stored_keys (
        name BLOB PRIMARY KEY,
        key BLOB NOT NULL
    ) STRICT;
    CREATE TABLE key_lists (
        name BLOB PRIMARY KEY,
        list BLOB NOT NULL
    ) STRICT;
";

/// Something to be remembered or forgotten.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Write {
    /// A grant that the user wants remembered.
    Grant(GrantId, Grant),
    /// A grant that was remembered has ended.
    Revoke(GrantId),
    /// A grant that is remembered was used.
    Used(GrantId, SystemTime),
    /// Something happened.
    Audit(AuditEntry),
    /// A key whose token keeps none itself, or what has become of it.
    StoredKey(Box<StoredKey>),
    /// Such a key was deleted.
    ForgetStoredKey(KeyName),
    /// Who may use a key whose token keeps no data.
    List(KeyName, OriginList),
    /// Such a key was deleted.
    ForgetList(KeyName),
}

/// What was remembered.
#[derive(Debug, Default)]
pub struct Remembered {
    /// The grants.
    pub grants: Vec<(GrantId, Grant)>,
    /// The newest [`AUDIT_SHOWN`] entries of the audit log, oldest first.
    pub audit: VecDeque<AuditEntry>,
    /// What this installation has and no other; one of this run's own where nothing is remembered.
    pub secret: InstallationSecret,
    /// Keys whose tokens keep none themselves.
    pub stored_keys: Vec<StoredKey>,
    /// Who may use keys whose tokens keep no data.
    pub key_lists: Vec<(KeyName, OriginList)>,
}

/// Most keys, and most lists, that are read from the file.
const MAX_KEYS: i64 = 10_000;

/// The open file.
#[derive(Debug)]
pub struct Store {
    connection: Connection,
    /// Entries of the audit log since it was last cut.
    new_entries: usize,
}

impl Store {
    /// Opens or makes the file in a folder that is there, and reads it. Rows that make no sense are left out.
    ///
    /// # Errors
    /// If the file cannot be opened, is damaged, or was written by a later version of this program. It is then left as it
    /// is.
    pub fn open(folder: &Path) -> Result<(Self, Remembered), rusqlite::Error> {
        let path = folder.join(FILE);
        // SQLite gives its other files the mode of this one.
        let made = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path)
            .and_then(|file| file.set_permissions(Permissions::from_mode(0o600)));
        if let Err(error) = made {
            log::warn!("{FILE}: {error}");
        }
        Self::use_connection(Connection::open(&path)?)
    }

    fn use_connection(connection: Connection) -> Result<(Self, Remembered), rusqlite::Error> {
        connection.busy_timeout(Duration::from_secs(2))?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        // What a damaged or hostile file could otherwise make SQLite do.
        connection.pragma_update(None, "trusted_schema", "OFF")?;
        connection.pragma_update(None, "cell_size_check", "ON")?;
        let layout: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        match layout {
            0 | 1 => {
                let transaction = connection.unchecked_transaction()?;
                if layout == 0 {
                    transaction.execute_batch(TABLES)?;
                }
                transaction.execute_batch(KEY_TABLES)?;
                transaction.pragma_update(None, "user_version", LAYOUT)?;
                transaction.commit()?;
            }
            LAYOUT => {}
            _ => return Err(rusqlite::Error::InvalidQuery),
        }
        let remembered = Remembered {
            grants: read_grants(&connection)?,
            audit: read_audit(&connection)?,
            secret: read_secret(&connection)?,
            stored_keys: read_named(
                &connection,
                "SELECT name, key FROM stored_keys LIMIT ?1",
                |_, key| StoredKey::read(&key),
            )?,
            key_lists: read_named(
                &connection,
                "SELECT name, list FROM key_lists LIMIT ?1",
                |name, list| {
                    let list = OriginList::parse(&list)?;
                    Some((name, list))
                },
            )?,
        };
        let store = Self {
            connection,
            new_entries: 0,
        };
        Ok((store, remembered))
    }

    /// Writes all or nothing, and returns when it is on the disk.
    ///
    /// # Errors
    /// If the disk is full, for example.
    pub fn write(&mut self, writes: &[Write]) -> Result<(), rusqlite::Error> {
        let transaction = self.connection.transaction()?;
        for write in writes {
            match write {
                Write::Grant(id, grant) => {
                    let (kind, subject) = subject_to_columns(&grant.subject);
                    transaction.execute(
                        "INSERT OR REPLACE INTO grants VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                        params![
                            id.0,
                            grant.party.origin.as_str(),
                            grant.party.top_level_origin.as_str(),
                            kind,
                            subject,
                            to_seconds(grant.created),
                            grant.last_used.map(to_seconds),
                        ],
                    )?;
                }
                Write::Revoke(id) => {
                    transaction.execute("DELETE FROM grants WHERE id = ?1", [id.0])?;
                }
                Write::Used(id, time) => {
                    transaction.execute(
                        "UPDATE grants SET last_used = ?2 WHERE id = ?1",
                        [id.0, to_seconds(*time)],
                    )?;
                }
                Write::StoredKey(key) => {
                    // What is in memory is never too long.
                    if let Some(encoded) = key.write() {
                        transaction.execute(
                            "INSERT OR REPLACE INTO stored_keys VALUES (?1, ?2)",
                            params![key.name().0, encoded],
                        )?;
                    }
                }
                Write::ForgetStoredKey(name) => {
                    transaction.execute("DELETE FROM stored_keys WHERE name = ?1", [name.0])?;
                }
                Write::List(name, list) => {
                    if let Some(encoded) = list.write() {
                        transaction.execute(
                            "INSERT OR REPLACE INTO key_lists VALUES (?1, ?2)",
                            params![name.0, encoded],
                        )?;
                    }
                }
                Write::ForgetList(name) => {
                    transaction.execute("DELETE FROM key_lists WHERE name = ?1", [name.0])?;
                }
                Write::Audit(entry) => {
                    self.new_entries += 1;
                    transaction.execute(
                        "INSERT INTO audit (time, origin, reader, applet, decision)
                         VALUES (?1, ?2, ?3, ?4, ?5)",
                        params![
                            to_seconds(entry.time),
                            entry.origin.as_str(),
                            entry.reader,
                            entry.applet,
                            entry.decision,
                        ],
                    )?;
                }
            }
        }
        if self.new_entries >= AUDIT_SLACK {
            transaction.execute(
                "DELETE FROM audit WHERE id <= (SELECT max(id) FROM audit) - ?1",
                [AUDIT_KEPT],
            )?;
            self.new_entries = 0;
        }
        transaction.commit()
    }
}

fn read_grants(connection: &Connection) -> Result<Vec<(GrantId, Grant)>, rusqlite::Error> {
    let mut statement = connection.prepare(
        "SELECT id, origin, top_level_origin, kind, subject, created, last_used FROM grants
         ORDER BY id LIMIT ?1",
    )?;
    let limit = i64::try_from(MAX_GRANTS).unwrap_or(i64::MAX);
    let mut rows = statement.query([limit])?;
    let mut grants = Vec::new();
    while let Some(row) = rows.next()? {
        match read_grant(row) {
            Some(grant) => grants.push(grant),
            None => log::warn!("{FILE}: a grant makes no sense and is left out"),
        }
    }
    Ok(grants)
}

fn read_grant(row: &Row<'_>) -> Option<(GrantId, Grant)> {
    let origin = |column| Origin::new(&row.get::<_, String>(column).ok()?);
    let grant = Grant {
        party: Party {
            origin: origin(1)?,
            top_level_origin: origin(2)?,
        },
        subject: subject_from_columns(&row.get::<_, String>(3).ok()?, row.get(4).ok()?)?,
        lasts: Lasts::UntilRevoked,
        created: from_seconds(row.get(5).ok()?)?,
        last_used: match row.get(6).ok()? {
            Value::Null => None,
            Value::Integer(seconds) => Some(from_seconds(seconds)?),
            _ => return None,
        },
    };
    Some((GrantId(row.get(0).ok()?), grant))
}

/// Reads the installation's secret, or makes it.
fn read_secret(connection: &Connection) -> Result<InstallationSecret, rusqlite::Error> {
    const NAME: &str = "installation";
    let read = || {
        connection.query_row("SELECT value FROM secrets WHERE name = ?1", [NAME], |row| {
            row.get::<_, [u8; 32]>(0)
        })
    };
    match read() {
        Ok(secret) => return Ok(InstallationSecret(secret.into())),
        Err(rusqlite::Error::QueryReturnedNoRows) => {}
        Err(error) => return Err(error),
    }
    connection.execute(
        "INSERT INTO secrets VALUES (?1, ?2)",
        params![NAME, InstallationSecret::random().0.as_slice()],
    )?;
    read().map(|secret| InstallationSecret(secret.into()))
}

/// Reads rows of a name and a value. Those that make no sense are left out.
fn read_named<T>(
    connection: &Connection,
    query: &str,
    read: impl Fn(KeyName, Vec<u8>) -> Option<T>,
) -> Result<Vec<T>, rusqlite::Error> {
    let mut statement = connection.prepare(query)?;
    let mut rows = statement.query([MAX_KEYS])?;
    let mut items = Vec::new();
    while let Some(row) = rows.next()? {
        let name = row.get::<_, [u8; 32]>(0).ok();
        let value = row.get::<_, Vec<u8>>(1).ok();
        match name
            .zip(value)
            .and_then(|(name, value)| read(KeyName(name), value))
        {
            Some(item) => items.push(item),
            None => log::warn!("{FILE}: a key makes no sense and is left out"),
        }
    }
    Ok(items)
}

fn read_audit(connection: &Connection) -> Result<VecDeque<AuditEntry>, rusqlite::Error> {
    let mut statement = connection.prepare(
        "SELECT time, origin, reader, applet, decision FROM audit ORDER BY id DESC LIMIT ?1",
    )?;
    let limit = i64::try_from(AUDIT_SHOWN).unwrap_or(i64::MAX);
    let mut rows = statement.query([limit])?;
    let mut audit = VecDeque::new();
    while let Some(row) = rows.next()? {
        if let Some(entry) = read_entry(row) {
            audit.push_front(entry);
        }
    }
    Ok(audit)
}

fn read_entry(row: &Row<'_>) -> Option<AuditEntry> {
    let text = |column| {
        let text: String = row.get(column).ok()?;
        (text.chars().count() <= MAX_NAME_LENGTH).then_some(text)
    };
    let applet: Option<Vec<u8>> = row.get(3).ok()?;
    Some(AuditEntry {
        time: from_seconds(row.get(0).ok()?)?,
        origin: Origin::new(&row.get::<_, String>(1).ok()?)?,
        reader: text(2)?,
        applet: applet.filter(|applet| applet.len() <= Aid::MAX_LENGTH),
        decision: text(4)?,
    })
}

fn subject_to_columns(subject: &Subject) -> (&'static str, Vec<u8>) {
    match subject {
        Subject::Reader(ReaderName::Pcsc(name)) => ("pcsc reader", name.as_bytes().to_vec()),
        Subject::Reader(ReaderName::Virtual(profile)) => {
            ("virtual card", profile.as_bytes().to_vec())
        }
        Subject::Applet(aid) => ("applet", aid.as_bytes().to_vec()),
        Subject::Token { token, label } => ("token", [&token.0, label.as_bytes()].concat()),
        // Neither name has control characters.
        Subject::Key {
            token,
            key,
            name,
            label,
        } => {
            let parts = [
                &token.0,
                &key.0[..],
                label.as_bytes(),
                b"\0",
                name.as_bytes(),
            ];
            ("key", parts.concat())
        }
    }
}

fn subject_from_columns(kind: &str, subject: Vec<u8>) -> Option<Subject> {
    if subject.len() > MAX_SUBJECT {
        return None;
    }
    Some(match kind {
        "pcsc reader" => Subject::Reader(ReaderName::Pcsc(String::from_utf8(subject).ok()?)),
        "virtual card" => Subject::Reader(ReaderName::Virtual(String::from_utf8(subject).ok()?)),
        "applet" => Subject::Applet(Aid::new(&subject).ok()?),
        "token" => {
            let (token, label) = subject.split_first_chunk()?;
            Subject::Token {
                token: TokenName(*token),
                label: String::from_utf8(label.to_vec()).ok()?,
            }
        }
        "key" => {
            let (token, rest) = subject.split_first_chunk()?;
            let (key, names) = rest.split_first_chunk()?;
            let (label, name) = std::str::from_utf8(names).ok()?.split_once('\0')?;
            Subject::Key {
                token: TokenName(*token),
                key: KeyName(*key),
                name: name.to_owned(),
                label: label.to_owned(),
            }
        }
        _ => return None,
    })
}

/// Seconds since the beginning of 1970; what was before is then.
fn to_seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    i64::try_from(since.unwrap_or_default().as_secs()).unwrap_or(i64::MAX)
}

fn from_seconds(seconds: i64) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(seconds).ok()?))
}

/// How long the writing of what a page is told of is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long to wait before what could not be written is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// Most that is kept of what could not be written: each grant, made and ended again.
const MAX_UNWRITTEN: usize = 2 * MAX_GRANTS;

/// Something to write, and whom to tell that it is on the disk.
type Order = (Write, Option<SyncSender<()>>);

/// The thread that writes, so that nobody waits for a slow disk. Dropped, it writes what is left.
#[derive(Debug)]
pub struct Writer {
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts the thread. It calls `on_change` whenever something could not be written, with a sentence for the user, and
    /// when all that must last has been written after that.
    ///
    /// # Errors
    /// If there can be no further thread.
    pub fn start(
        mut store: Store,
        on_change: impl Fn(Option<String>) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (sender, receiver) = mpsc::channel::<Order>();
        let thread = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || {
                // What could not be written, in the order in which it happened.
                let mut unwritten = Vec::new();
                loop {
                    let first = if unwritten.is_empty() {
                        receiver.recv().map_err(|_| RecvTimeoutError::Disconnected)
                    } else {
                        receiver.recv_timeout(RETRY_AFTER)
                    };
                    if matches!(first, Err(RecvTimeoutError::Disconnected)) {
                        break;
                    }
                    // Whatever has come meanwhile goes to the disk together.
                    let (writes, waiting): (Vec<Write>, Vec<_>) =
                        first.into_iter().chain(receiver.try_iter()).unzip();
                    let is_retry = !unwritten.is_empty();
                    unwritten.extend(writes);
                    match store.write(&unwritten) {
                        Ok(()) => {
                            unwritten.clear();
                            if is_retry {
                                on_change(None);
                            }
                        }
                        Err(error) => {
                            log::error!("{FILE}: {error}");
                            on_change(Some(not_remembered(&error)));
                            keep_what_must_last(&mut unwritten);
                        }
                    }
                    for waiting in waiting.into_iter().flatten() {
                        // Nobody waits any more if it took too long.
                        let _ = waiting.try_send(());
                    }
                }
            })?;
        Ok(Self {
            orders: Some(sender),
            thread: Some(thread),
        })
    }

    /// Writes something as soon as possible. Returns when a grant, or the end of one, is on the disk, because nothing is to
    /// be lost that a page or the user was told of, or after a second.
    pub fn write(&self, write: Write) {
        let Some(orders) = &self.orders else {
            return;
        };
        let must_last = must_last(&write);
        let (done, is_done) = mpsc::sync_channel(1);
        let sent = orders.send((write, must_last.then_some(done)));
        if must_last && sent.is_ok() && is_done.recv_timeout(PATIENCE).is_err() {
            log::warn!("{FILE}: the disk is slow");
        }
    }
}

/// Whether the user or a page is told of it as something that stays.
fn must_last(write: &Write) -> bool {
    !matches!(write, Write::Used(..) | Write::Audit(_))
}

/// Forgets the rest, which is not worth any memory, and the oldest if there is too much.
fn keep_what_must_last(writes: &mut Vec<Write>) {
    writes.retain(must_last);
    let surplus = writes.len().saturating_sub(MAX_UNWRITTEN);
    writes.drain(..surplus);
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Some(thread) = self.thread.take() {
            // It does not panic.
            let _ = thread.join();
        }
    }
}

/// A sentence for the user.
pub fn not_remembered(error: &rusqlite::Error) -> String {
    format!(
        "What you allow is not remembered, because the file {FILE} in the profile cannot be used: {error}"
    )
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Instant;

    use proptest::prelude::*;

    use super::*;

    fn grant(subject: Subject) -> Grant {
        Grant {
            party: Party {
                origin: Origin::new("https://bank.example").unwrap(),
                top_level_origin: Origin::new("https://shop.example").unwrap(),
            },
            subject,
            lasts: Lasts::UntilRevoked,
            created: from_seconds(1_000_000_000).unwrap(),
            last_used: None,
        }
    }

    fn entry(decision: &str) -> AuditEntry {
        AuditEntry {
            time: from_seconds(2_000_000_000).unwrap(),
            origin: Origin::new("https://bank.example").unwrap(),
            reader: "Reader".to_owned(),
            applet: Some(vec![1, 2, 3, 4, 5]),
            decision: decision.to_owned(),
        }
    }

    #[test]
    fn what_is_written_is_there_the_next_time() {
        let folder = tempfile::tempdir().unwrap();
        let grants = [
            Subject::Reader(ReaderName::Pcsc("Reader 00 00".to_owned())),
            Subject::Reader(ReaderName::Virtual("default".to_owned())),
            Subject::Applet(Aid::new(&[0xA0, 0, 0, 0, 1]).unwrap()),
            Subject::Token {
                token: TokenName([1; 32]),
                label: "Company card".to_owned(),
            },
            Subject::Key {
                token: TokenName([2; 32]),
                key: KeyName([3; 32]),
                name: "a key".to_owned(),
                label: "Company card".to_owned(),
            },
        ]
        .map(grant);
        let bank = Origin::new("https://bank.example").unwrap();
        let list = OriginList {
            key: [4; 32],
            creator: Some(bank.clone()),
            origins: vec![bank],
        };
        let (mut store, remembered) = Store::open(folder.path()).unwrap();
        assert!(remembered.grants.is_empty() && remembered.audit.is_empty());
        assert_ne!(*remembered.secret.0, [0; 32]);
        let secret = remembered.secret;
        store
            .write(&[
                Write::List(KeyName([5; 32]), list.clone()),
                Write::List(KeyName([6; 32]), list.clone()),
                Write::ForgetList(KeyName([6; 32])),
            ])
            .unwrap();
        let id = |index: usize| GrantId(i64::try_from(index).unwrap() + 7);
        for (index, grant) in grants.iter().enumerate() {
            store
                .write(&[Write::Grant(id(index), grant.clone())])
                .unwrap();
        }
        store
            .write(&[
                Write::Revoke(id(1)),
                Write::Used(id(2), from_seconds(1_500_000_000).unwrap()),
                Write::Audit(entry("first")),
                Write::Audit(entry("second")),
            ])
            .unwrap();
        drop(store);
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&folder.path().join(FILE)), 0o600);

        let (_, remembered) = Store::open(folder.path()).unwrap();
        let mut used = grants[2].clone();
        used.last_used = from_seconds(1_500_000_000);
        assert_eq!(
            remembered.grants,
            [
                (id(0), grants[0].clone()),
                (id(2), used),
                (id(3), grants[3].clone()),
                (id(4), grants[4].clone())
            ]
        );
        assert_eq!(remembered.secret.0, secret.0);
        assert_eq!(remembered.key_lists, [(KeyName([5; 32]), list)]);
        assert_eq!(remembered.audit, [entry("first"), entry("second")]);
    }

    #[test]
    fn a_file_from_before_there_were_keys_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let connection = Connection::open(folder.path().join(FILE)).unwrap();
        connection.execute_batch(TABLES).unwrap();
        connection.pragma_update(None, "user_version", 1).unwrap();
        connection
            .execute(
                "INSERT INTO grants VALUES (1, 'https://a.example', 'https://a.example', 'applet', x'0101010101', 1, NULL)",
                [],
            )
            .unwrap();
        drop(connection);
        let secrets: Vec<_> = (0..2)
            .map(|_| {
                let (_, remembered) = Store::open(folder.path()).unwrap();
                assert_eq!(remembered.grants.len(), 1);
                remembered.secret.0
            })
            .collect();
        assert_eq!(secrets[0], secrets[1]);
        // Every installation has another one.
        let other = tempfile::tempdir().unwrap();
        let (_, remembered) = Store::open(other.path()).unwrap();
        assert_ne!(remembered.secret.0, secrets[0]);
    }

    #[test]
    fn the_audit_log_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, _) = Store::open(folder.path()).unwrap();
        let entries = vec![Write::Audit(entry("again")); 12_000];
        store.write(&entries).unwrap();
        store.write(&[Write::Audit(entry("last"))]).unwrap();
        let count: i64 = store
            .connection
            .query_row("SELECT count(*) FROM audit", [], |row| row.get(0))
            .unwrap();
        assert_eq!(count, AUDIT_KEPT + 1);
        drop(store);
        let (_, remembered) = Store::open(folder.path()).unwrap();
        assert_eq!(remembered.audit.len(), AUDIT_SHOWN);
        assert_eq!(remembered.audit.back(), Some(&entry("last")));
    }

    #[test]
    fn a_file_that_is_none_or_of_another_version_is_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        std::fs::write(
            &path,
            "this is no database, but long enough to look like one".repeat(100),
        )
        .unwrap();
        let before = std::fs::read(&path).unwrap();
        assert!(Store::open(folder.path()).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), before);

        std::fs::remove_file(&path).unwrap();
        let (store, _) = Store::open(folder.path()).unwrap();
        let later = LAYOUT + 1;
        store
            .connection
            .pragma_update(None, "user_version", later)
            .unwrap();
        drop(store);
        assert!(Store::open(folder.path()).is_err());

        assert!(Store::open(&folder.path().join("missing")).is_err());
    }

    #[test]
    fn rows_that_make_no_sense_are_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, _) = Store::open(folder.path()).unwrap();
        let good = grant(Subject::Applet(Aid::new(&[1; 5]).unwrap()));
        store
            .write(&[Write::Grant(GrantId(1), good.clone())])
            .unwrap();
        let bad = [
            "(2, 'null', 'https://a.example', 'applet', x'0101010101', 1, NULL)",
            "(3, 'https://a.example', '', 'applet', x'0101010101', 1, NULL)",
            "(4, 'https://a.example', 'https://a.example', 'applet', zeroblob(17), 1, NULL)",
            "(5, 'https://a.example', 'https://a.example', 'pcsc reader', x'FF', 1, NULL)",
            "(6, 'https://a.example', 'https://a.example', 'everything', x'01', 1, NULL)",
            "(7, 'https://a.example', 'https://a.example', 'pcsc reader', x'41', -1, NULL)",
            "(8, 'https://a.example', 'https://a.example', 'pcsc reader', zeroblob(2000), 1, NULL)",
            "(9, 'https://a.example', 'https://a.example', 'pcsc reader', x'41', 1, -1)",
        ];
        for row in bad {
            let insert = format!("INSERT INTO grants VALUES {row}");
            store.connection.execute(&insert, []).unwrap();
        }
        let long = "x".repeat(MAX_NAME_LENGTH + 1);
        for (origin, reader) in [("null", "Reader"), ("https://a.example", &long)] {
            store
                .connection
                .execute(
                    "INSERT INTO audit VALUES (NULL, 1, ?1, ?2, NULL, 'x')",
                    [origin, reader],
                )
                .unwrap();
        }
        drop(store);
        let (_, remembered) = Store::open(folder.path()).unwrap();
        assert_eq!(remembered.grants, [(GrantId(1), good)]);
        assert!(remembered.audit.is_empty());
    }

    #[test]
    fn the_writer_writes_what_is_left_says_what_fails_and_tries_again() {
        let folder = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(folder.path()).unwrap();
        let changes = Arc::new(Mutex::new(Vec::new()));
        let start = |store| {
            let changes = changes.clone();
            Writer::start(store, move |change| changes.lock().unwrap().push(change)).unwrap()
        };
        let writer = start(store);
        for _ in 0..100 {
            writer.write(Write::Audit(entry("kept")));
        }
        let kept = grant(Subject::Applet(Aid::new(&[1; 5]).unwrap()));
        writer.write(Write::Grant(GrantId(3), kept.clone()));
        let (store, remembered) = Store::open(folder.path()).unwrap();
        assert_eq!(
            remembered.grants,
            [(GrantId(3), kept.clone())],
            "it is there already"
        );
        drop(writer);
        assert!(changes.lock().unwrap().is_empty());

        // As long as somebody else has it, nobody can write.
        let other = Connection::open(folder.path().join(FILE)).unwrap();
        other.execute_batch("BEGIN EXCLUSIVE").unwrap();
        store.connection.busy_timeout(Duration::ZERO).unwrap();
        let writer = start(store);
        writer.write(Write::Audit(entry("lost")));
        writer.write(Write::Grant(GrantId(4), kept.clone()));
        writer.write(Write::Revoke(GrantId(3)));
        other.execute_batch("ROLLBACK").unwrap();
        let until = Instant::now() + RETRY_AFTER * 10;
        while changes.lock().unwrap().last() != Some(&None) {
            assert!(Instant::now() < until, "it is not tried again");
            std::thread::sleep(Duration::from_millis(10));
        }
        drop(writer);
        for change in changes.lock().unwrap().iter().rev().skip(1) {
            assert!(change.as_ref().unwrap().contains("not remembered"));
        }
        let (_, remembered) = Store::open(folder.path()).unwrap();
        assert_eq!(remembered.grants, [(GrantId(4), kept)]);
        assert_eq!(remembered.audit.len(), 100);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_damaged_file_does_no_harm(
            damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..40),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let (mut store, _) = Store::open(folder.path()).unwrap();
            let named = |name: String| grant(Subject::Reader(ReaderName::Pcsc(name)));
            let grants = (0..20).map(|id| Write::Grant(GrantId(id), named(id.to_string())));
            store.write(&grants.collect::<Vec<_>>()).unwrap();
            drop(store);
            let path = folder.path().join(FILE);
            let mut bytes = std::fs::read(&path).unwrap();
            for (index, byte) in damage {
                let index = index.index(bytes.len());
                bytes[index] = byte;
            }
            std::fs::write(&path, bytes).unwrap();
            if let Ok((mut store, remembered)) = Store::open(folder.path()) {
                prop_assert!(remembered.grants.len() <= MAX_GRANTS);
                let _ = store.write(&[Write::Grant(GrantId(99), named(String::new()))]);
            }
        }
    }
}
