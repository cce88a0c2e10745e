/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Keys as winit reports them, in the terms of UI Events.
//!
//! Both winit and the engine name keys and key codes after the UI Events specifications, so that they are converted by
//! name, except where winit says "Super" for what the Web calls "Meta". Unknown names become `Unidentified`.

use servo::{Code, Key, KeyState, KeyboardEvent, Location, Modifiers, NamedKey};
use winit::event::{ElementState, KeyEvent};
use winit::keyboard::{
    Key as WinitKey, KeyCode, KeyLocation, ModifiersState, NamedKey as WinitNamedKey, PhysicalKey,
};

/// Converts a key event.
pub fn keyboard_event(event: &KeyEvent, modifiers: ModifiersState) -> KeyboardEvent {
    KeyboardEvent::new_without_event(
        match event.state {
            ElementState::Pressed => KeyState::Down,
            ElementState::Released => KeyState::Up,
        },
        key(&event.logical_key),
        code(event.physical_key),
        match event.location {
            KeyLocation::Standard => Location::Standard,
            KeyLocation::Left => Location::Left,
            KeyLocation::Right => Location::Right,
            KeyLocation::Numpad => Location::Numpad,
        },
        self::modifiers(modifiers),
        event.repeat,
        false,
    )
}

fn key(key: &WinitKey) -> Key {
    match key {
        WinitKey::Character(text) => Key::Character(text.to_string()),
        WinitKey::Named(WinitNamedKey::Space) => Key::Character(" ".into()),
        WinitKey::Named(WinitNamedKey::Super) => Key::Named(NamedKey::Meta),
        WinitKey::Named(named) => Key::Named(
            format!("{named:?}")
                .parse()
                .unwrap_or(NamedKey::Unidentified),
        ),
        WinitKey::Dead(_) => Key::Named(NamedKey::Dead),
        WinitKey::Unidentified(_) => Key::Named(NamedKey::Unidentified),
    }
}

fn code(key: PhysicalKey) -> Code {
    match key {
        PhysicalKey::Code(KeyCode::SuperLeft) => Code::MetaLeft,
        PhysicalKey::Code(KeyCode::SuperRight) => Code::MetaRight,
        PhysicalKey::Code(code) => format!("{code:?}").parse().unwrap_or(Code::Unidentified),
        PhysicalKey::Unidentified(_) => Code::Unidentified,
    }
}

fn modifiers(state: ModifiersState) -> Modifiers {
    let mut modifiers = Modifiers::empty();
    modifiers.set(Modifiers::SHIFT, state.shift_key());
    modifiers.set(Modifiers::CONTROL, state.control_key());
    modifiers.set(Modifiers::ALT, state.alt_key());
    modifiers.set(Modifiers::META, state.super_key());
    modifiers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_agree() {
        assert_eq!(
            key(&WinitKey::Named(WinitNamedKey::ArrowUp)),
            Key::Named(NamedKey::ArrowUp)
        );
        assert_eq!(
            key(&WinitKey::Named(WinitNamedKey::Enter)),
            Key::Named(NamedKey::Enter)
        );
        assert_eq!(
            key(&WinitKey::Named(WinitNamedKey::F12)),
            Key::Named(NamedKey::F12)
        );
        assert_eq!(
            key(&WinitKey::Named(WinitNamedKey::Space)),
            Key::Character(" ".into())
        );
        assert_eq!(
            key(&WinitKey::Character("ä".into())),
            Key::Character("ä".into())
        );
        assert_eq!(code(PhysicalKey::Code(KeyCode::KeyQ)), Code::KeyQ);
        assert_eq!(code(PhysicalKey::Code(KeyCode::Digit7)), Code::Digit7);
        assert_eq!(
            code(PhysicalKey::Code(KeyCode::NumpadEnter)),
            Code::NumpadEnter
        );
        assert_eq!(code(PhysicalKey::Code(KeyCode::SuperLeft)), Code::MetaLeft);
        assert_eq!(
            modifiers(ModifiersState::SHIFT | ModifiersState::SUPER),
            Modifiers::SHIFT | Modifiers::META
        );
    }
}
