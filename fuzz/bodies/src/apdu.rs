/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Command APDUs.

use secure_element::apdu::CommandApdu;
use secure_element::class_byte::{
    ChannelNumber, channel_of, has_secure_messaging, is_chained, is_forbidden_on_channel,
    with_channel,
};

/// A command that can be read is written as it was. It moves between channels without changing its meaning, and what a
/// caller may not send it may not send on any of them.
pub fn run(bytes: &[u8]) {
    let Ok(command) = CommandApdu::parse(bytes) else {
        return;
    };
    assert_eq!(command.encode(), bytes);
    let header = command.header();
    let data = command.data().to_vec();
    let same = CommandApdu::new(header, data.clone(), command.le(), command.length_form());
    assert_eq!(same.as_ref(), Ok(&command));
    match CommandApdu::with_shortest_form(header, data, command.le()) {
        Ok(shortest) => {
            assert!(shortest.encode().len() <= bytes.len());
            assert_eq!(CommandApdu::parse(&shortest.encode()), Ok(shortest));
        }
        Err(error) => panic!("the parts of a command make none: {error}"),
    }

    let is_forbidden = is_forbidden_on_channel(&command);
    for channel in (0..=ChannelNumber::MAX).filter_map(ChannelNumber::new) {
        let Ok(class) = with_channel(header.cla, channel) else {
            continue;
        };
        assert_eq!(channel_of(class), Ok(channel));
        assert_eq!(is_chained(class), is_chained(header.cla));
        assert_eq!(
            has_secure_messaging(class),
            has_secure_messaging(header.cla)
        );
        let moved = command.clone().with_class(class);
        assert_eq!(moved.encode().get(1..), bytes.get(1..));
        assert_eq!(is_forbidden_on_channel(&moved), is_forbidden);
    }
}
