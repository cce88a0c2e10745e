/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The servers that were talked to although their certificate has an error, because the user made an exception.

use std::collections::HashSet;
use std::sync::LazyLock;

use parking_lot::Mutex;
use rustls_pki_types::ServerName;
use servo_url::Host;

static SERVERS: LazyLock<Mutex<HashSet<ServerName<'static>>>> = LazyLock::new(Default::default);

/// Remembers a server for as long as the process lives: what it sent may be in a cache.
pub(crate) fn note_certificate_exception(server_name: &ServerName<'_>) {
    SERVERS.lock().insert(server_name.to_owned());
}

/// Whether a certificate of this host was ever accepted by an exception, at whatever port.
pub fn has_certificate_exception(host: &Host) -> bool {
    let server_name = match host {
        Host::Domain(domain) => ServerName::try_from(domain.as_str()),
        Host::Ipv4(address) => Ok(ServerName::from(*address)),
        Host::Ipv6(address) => Ok(ServerName::from(*address)),
    };
    // A host that cannot be the name of a server has no certificate.
    server_name.map_or(true, |server_name| {
        SERVERS.lock().contains(&server_name.to_owned())
    })
}
