/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

use proptest::prelude::*;

use super::*;
use crate::Origin;

const A: &str = "https://a.example";
const B: &str = "https://b.example";
const C: &str = "https://c.example:8443";

type Policy = PermissionsPolicy<Origin>;

fn origin(url: &str) -> Origin {
    Origin::new(url).unwrap()
}

fn parse_origin(url: &str) -> Option<Origin> {
    Origin::new(url.strip_suffix('/').unwrap_or(url))
        .filter(|origin| !origin.as_str().contains('*'))
}

fn header(value: &str) -> Policy {
    Policy::from_header(value, &origin(A), parse_origin)
}

/// Whether a document of A with this header may use secure elements itself, and which of A, B and C it leaves them in a
/// frame with this attribute, whose declared origin is B.
fn secure_element(header_value: &str, attribute: Option<&str>) -> (bool, String) {
    let declared = header(header_value);
    let container = attribute.map_or(Policy::default(), |value| {
        Policy::from_attribute(value, &origin(A), Some(&origin(B)), parse_origin)
    });
    let delegated = declared.delegate(&container, &origin(A));
    let mut to = String::new();
    for (name, url) in [("A", A), ("B", B), ("C", C)] {
        if delegated
            .delegated_features(Some(&origin(url)))
            .contains(Feature::SecureElement)
        {
            to += name;
        }
    }
    if delegated
        .delegated_features(None)
        .contains(Feature::SecureElement)
    {
        to += "*";
    }
    (
        declared
            .own_features(&origin(A))
            .contains(Feature::SecureElement),
        to,
    )
}

#[test]
fn headers() {
    for (value, own, delegated_to) in [
        // Nothing is said about the feature.
        ("", true, "B"),
        ("camera=(), geolocation=*", true, "B"),
        ("secure-elements=()", true, "B"),
        // What the document leaves itself, and what it can hand on to B.
        ("secure-element=()", false, ""),
        ("secure-element=self", true, ""),
        ("secure-element=(self)", true, ""),
        ("secure-element=*", true, "B"),
        ("secure-element=(*)", true, "B"),
        ("secure-element=(self \"https://b.example\")", true, "B"),
        ("secure-element=(self \"https://b.example/\")", true, "B"),
        ("secure-element=(\"https://b.example\")", false, ""),
        ("secure-element=(self \"https://c.example:8443\")", true, ""),
        // One item is as good as a list with it.
        ("secure-element=\"https://a.example\"", true, ""),
        // Expressions that match nobody: other schemes, wildcards, unquoted ones, other types.
        ("secure-element=(self \"http://b.example\")", true, ""),
        ("secure-element=(self \"https://*.example\")", true, ""),
        ("secure-element=(self https://b.example)", true, ""),
        ("secure-element=(self 'src')", true, "B"),
        ("secure-element", false, ""),
        ("secure-element=?1", false, ""),
        ("secure-element=(src)", false, ""),
        ("secure-element=none", false, ""),
        ("secure-element=self;report-to=x", true, ""),
        (
            "secure-element=(self;a=1 \"https://b.example\");b",
            true,
            "B",
        ),
        // The last one counts.
        ("secure-element=(), secure-element=*", true, "B"),
        ("secure-element=*, camera=(), secure-element=()", false, ""),
        // One that is malformed declares nothing at all.
        ("secure-element=(", true, "B"),
        ("secure-element=()x", true, "B"),
        ("secure-element=(),", true, "B"),
        ("secure-element=(); camera=*, Camera=()", true, "B"),
        ("secure-element 'none'", true, "B"),
        ("secure-element=(\"a\"\"b\")", true, "B"),
        ("secure-element=(), \u{e9}=*", true, "B"),
    ] {
        // A header with 'src' in it is malformed, as tokens do not begin with an apostrophe.
        assert_eq!(
            secure_element(value, Some("secure-element 'src'")),
            (own, delegated_to.to_owned()),
            "{value}"
        );
    }
}

#[test]
fn attributes() {
    for (value, delegated_to) in [
        ("", "A"),
        ("camera *", "A"),
        ("secure-elements *; Secure-Element *", "A"),
        ("secure-element", "B"),
        (" ;; secure-element ;", "B"),
        ("secure-element 'src'", "B"),
        ("secure-element 'SELF'", "A"),
        ("secure-element 'self' 'src'", "AB"),
        ("secure-element *", "ABC*"),
        ("secure-element 'none' *", "ABC*"),
        ("secure-element 'none'", ""),
        ("secure-element 'none' 'self'", "A"),
        ("secure-element self", ""),
        ("secure-element 'self' https://c.example:8443", "AC"),
        ("secure-element\t'self'\nhttps://c.example:8443/", "AC"),
        ("secure-element https://c.example", ""),
        ("secure-element https://*", ""),
        ("secure-element=*", "A"),
        // Named several times: all lists have to match.
        ("secure-element *; secure-element", "B"),
        ("secure-element; secure-element *", "B"),
        ("secure-element; secure-element 'self'", ""),
        ("secure-element 'none'; secure-element *", ""),
        ("secure-element *; camera; secure-element 'none'", ""),
    ] {
        assert_eq!(
            secure_element("", Some(value)),
            (true, delegated_to.to_owned()),
            "{value}"
        );
    }
    assert_eq!(secure_element("", None), (true, "A".to_owned()));
}

#[test]
fn the_header_bounds_what_the_attribute_hands_on() {
    for (header, attribute, delegated_to) in [
        (
            "secure-element=(self \"https://b.example\")",
            "secure-element *",
            "AB",
        ),
        ("secure-element=*", "secure-element *", "ABC*"),
        ("secure-element=*", "secure-element 'self'", "A"),
        ("secure-element=self", "secure-element *", "A"),
        ("secure-element=self", "secure-element", ""),
        // Without the feature itself, a document has nothing to hand on.
        (
            "secure-element=(\"https://b.example\")",
            "secure-element *",
            "",
        ),
    ] {
        assert_eq!(
            secure_element(header, Some(attribute)).1,
            delegated_to,
            "{header} {attribute}"
        );
    }
}

#[test]
fn features_do_not_touch_each_other() {
    let policy = header("payment=(), token-keys=(self), publickey-credentials-get=*");
    let mut expected = FeatureSet::ALL;
    assert_eq!(Policy::default().own_features(&origin(A)), expected);
    expected = Feature::ALL
        .into_iter()
        .filter(|feature| *feature != Feature::Payment)
        .collect();
    assert_eq!(policy.own_features(&origin(A)), expected);
    let container = Policy::from_attribute(
        "payment; token-keys *; publickey-credentials-get",
        &origin(A),
        Some(&origin(B)),
        parse_origin,
    );
    let delegated = policy.delegate(&container, &origin(A));
    assert_eq!(
        delegated.delegated_features(Some(&origin(B))),
        [Feature::PublicKeyCredentialsGet].into_iter().collect()
    );
    assert_eq!(
        delegated.delegated_features(Some(&origin(A))),
        [
            Feature::SecureElement,
            Feature::TokenKeys,
            Feature::PublicKeyCredentialsCreate
        ]
        .into_iter()
        .collect()
    );
}

#[test]
fn a_frame_whose_declared_origin_is_opaque_has_no_src() {
    for value in ["secure-element", "secure-element 'src'"] {
        let container = Policy::from_attribute(value, &origin(A), None, parse_origin);
        let delegated = Policy::default().delegate(&container, &origin(A));
        for url in [A, B] {
            assert!(
                !delegated
                    .delegated_features(Some(&origin(url)))
                    .contains(Feature::SecureElement)
            );
        }
    }
}

#[test]
fn structured_fields() {
    let token = |token: &str| Bare::Token(token.to_owned());
    let string = |string: &str| Bare::String(string.to_owned());
    let parsed = parse_dictionary(
        "  a=1, b=-1.5 ,\tc=?0;x;y=\"z\",d=:aGk=:, e=( \"q\\\"\\\\\" t/o:k.en  ;p *),*f, g=();a;  b ",
    );
    let expected = [
        ("a", Member::Item(Bare::Other)),
        ("b", Member::Item(Bare::Other)),
        ("c", Member::Item(Bare::Other)),
        ("d", Member::Item(Bare::Other)),
        ("*f", Member::Item(Bare::Other)),
        ("g", Member::List(vec![])),
    ];
    // A space before the semicolon of a parameter is malformed.
    assert_eq!(parsed, None);
    let parsed = parse_dictionary(
        "  a=1, b=-1.5 ,\tc=?0;x;y=\"z\",d=:aGk=:, e=( \"q\\\"\\\\\" t/o:k.en;p  *),*f, g=();a;  b ",
    )
    .unwrap();
    let (lists, others): (Vec<_>, Vec<_>) = parsed.into_iter().partition(|(key, _)| key == "e");
    assert_eq!(
        others,
        expected.map(|(key, member)| (key.to_owned(), member))
    );
    assert_eq!(
        lists,
        [(
            "e".to_owned(),
            Member::List(vec![string("q\"\\"), token("t/o:k.en"), token("*")])
        )]
    );
    for malformed in [
        "A=1",
        "1=a",
        "a=",
        "a==1",
        "a=-",
        "a=1.",
        "a=.1",
        "a=1.2345",
        "a=1234567890123456",
        "a=\"",
        "a=\"\\x\"",
        "a=\"\u{7f}\"",
        "a=?2",
        "a=?",
        "a=:x",
        "a=:x_:",
        "a=(",
        "a=(b",
        "a=(b\tc)",
        "a=(b,c)",
        "a=((b))",
        "a;",
        "a;B",
        "a;b=",
        "a,",
        ",",
        "a b",
        "a=b c",
        "a=@1",
        "a\n",
    ] {
        assert_eq!(parse_dictionary(malformed), None, "{malformed:?}");
    }
    assert_eq!(parse_dictionary(""), Some(vec![]));
}

proptest! {
    #[test]
    fn parsing_is_total(value: String, own: bool) {
        let declared = header(&value);
        let container = Policy::from_attribute(&value, &origin(A), own.then(|| origin(B)).as_ref(), parse_origin);
        declared.delegate(&container, &origin(A));
    }

    /// Whatever is declared, a frame gets nothing that its container document has not, and nothing that the header does not
    /// hand on to it.
    #[test]
    fn nothing_is_gained(
        value in "(secure-element|payment)=(\\*|self|\\(\\)|\\(self \"https://b.example\"\\))",
        attribute in "(secure-element|payment)( \\*| 'self'| 'src'| https://c.example:8443){0,3}",
    ) {
        let declared = header(&value);
        let container = Policy::from_attribute(&attribute, &origin(A), Some(&origin(B)), parse_origin);
        let delegated = declared.delegate(&container, &origin(A));
        for url in [A, B, C] {
            let features = delegated.delegated_features(Some(&origin(url)));
            prop_assert_eq!(features.intersection(declared.own_features(&origin(A))), features);
            prop_assert_eq!(features.intersection(declared.own_features(&origin(url))), features);
        }
    }
}
