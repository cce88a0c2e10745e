/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Preferences from the command line and from files. [`Preferences::set_value`] panics on unknown names and wrong types,
//! so both are checked here first.

use std::path::Path;

use serde_json::Value;
use servo::{PrefValue, Preferences};

/// Applies `NAME=VALUE`, or `NAME` for `NAME=true`.
pub fn apply_argument(preferences: &mut Preferences, argument: &str) -> Result<(), String> {
    let (name, text) = argument.split_once('=').unwrap_or((argument, "true"));
    // A text value needs no quotes, so the preference's type decides how the value is read.
    let value = match type_of(name)? {
        "alloc::string::String" => Value::from(text),
        _ => serde_json::from_str(text).unwrap_or_else(|_| Value::from(text)),
    };
    apply(preferences, name, &value)
}

/// Applies a JSON file: an object whose keys are the names of preferences.
pub fn apply_file(preferences: &mut Preferences, path: &Path) -> Result<(), String> {
    let problem =
        |error: &dyn std::fmt::Display| format!("--prefs-file: {}: {error}", path.display());
    let text = std::fs::read_to_string(path).map_err(|error| problem(&error))?;
    let Value::Object(values) = serde_json::from_str(&text).map_err(|error| problem(&error))?
    else {
        return Err(problem(&"expected a JSON object"));
    };
    for (name, value) in &values {
        apply(preferences, name, value).map_err(|error| problem(&error))?;
    }
    Ok(())
}

fn type_of(name: &str) -> Result<&'static str, String> {
    if !Preferences::exists(name) {
        return Err(format!("there is no preference {name:?}"));
    }
    Ok(Preferences::type_of(name))
}

fn apply(preferences: &mut Preferences, name: &str, value: &Value) -> Result<(), String> {
    let type_name = type_of(name)?;
    let (expected, converted) = match type_name {
        "bool" => ("true or false", value.as_bool().map(PrefValue::Bool)),
        "i64" => ("a whole number", value.as_i64().map(PrefValue::Int)),
        "u64" => (
            "a whole number that is not negative",
            value.as_u64().map(PrefValue::UInt),
        ),
        "f64" => ("a number", value.as_f64().map(PrefValue::Float)),
        "alloc::string::String" => ("text", value.as_str().map(PrefValue::from)),
        "[f64; 4]" => (
            "a list of four numbers",
            four_numbers(value).map(PrefValue::from),
        ),
        other => {
            return Err(format!(
                "preference {name:?} has the type {other}, which cannot be set from outside"
            ));
        }
    };
    let converted =
        converted.ok_or_else(|| format!("preference {name:?} is {expected}, not {value}"))?;
    preferences.set_value(name, converted);
    Ok(())
}

fn four_numbers(value: &Value) -> Option<[f64; 4]> {
    let numbers: Option<Vec<f64>> = value.as_array()?.iter().map(Value::as_f64).collect();
    numbers?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(argument: &str) -> Preferences {
        let mut preferences = Preferences::default();
        apply_argument(&mut preferences, argument).unwrap();
        preferences
    }

    #[test]
    fn values_take_the_type_of_the_preference() {
        assert!(applied("dom_webgpu_enabled=true").dom_webgpu_enabled);
        assert!(applied("dom_webgpu_enabled").dom_webgpu_enabled);
        assert!(!applied("dom_webgpu_enabled=false").dom_webgpu_enabled);
        assert_eq!(applied("layout_threads=7").layout_threads, 7);
        assert_eq!(applied("user_agent=12").user_agent, "12");
        assert_eq!(applied("user_agent=a=b").user_agent, "a=b");
        assert_eq!(
            applied("shell_background_color_rgba=[1,0,0.5,1]").shell_background_color_rgba,
            [1., 0., 0.5, 1.]
        );
    }

    #[test]
    fn unknown_names_and_wrong_types_are_errors() {
        let mut preferences = Preferences::default();
        for bad in [
            "nothing_of_this_name=1",
            "dom_webgpu_enabled=1",
            "layout_threads=x",
            "layout_threads=1.5",
        ] {
            let error = apply_argument(&mut preferences, bad).unwrap_err();
            assert!(error.contains(bad.split('=').next().unwrap()), "{error}");
        }
    }
}
