/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! `navigator.permissions.query()` for the features of the token broker, which answers it. Nothing is remembered here.

use js::context::JSContext;
use token_traits::port::RequestBody;
use token_traits::{Feature, PermissionState};

use crate::dom::bindings::codegen::Bindings::PermissionStatusBinding::{
    PermissionName, PermissionState as DomPermissionState,
};
use crate::dom::bindings::codegen::Bindings::WindowBinding::WindowMethods;
use crate::dom::bindings::error::Error;
use crate::dom::bindings::inheritance::Castable;
use crate::dom::bindings::reflector::DomGlobal;
use crate::dom::bindings::root::{Dom, DomRoot};
use crate::dom::permissionstatus::PermissionStatus;
use crate::dom::promise::RootedPromise;
use crate::dom::tokenport::Answer;
use crate::dom::window::Window;

/// The feature that a permission is about, if the token broker decides about it.
pub(crate) fn token_feature(name: PermissionName) -> Option<Feature> {
    match name {
        PermissionName::Secure_element => Some(Feature::SecureElement),
        PermissionName::Token_keys => Some(Feature::TokenKeys),
        _ => None,
    }
}

/// Resolves `promise` with `status` when the broker has said what its state is. It is "denied" where a document gets no
/// port to the broker, and in workers.
///
/// <https://w3c.github.io/permissions/#query-method>
pub(crate) fn query_token_permission(
    cx: &mut JSContext,
    promise: &RootedPromise,
    status: &DomRoot<PermissionStatus>,
) {
    status.set_state(DomPermissionState::Denied);
    let global = status.global();
    let (Some(feature), Some(window), true) = (
        token_feature(status.get_query()),
        global.downcast::<Window>(),
        global.is_secure_context(),
    ) else {
        return promise.resolve_native(cx, status);
    };
    if !window.Document().is_fully_active() {
        return promise.reject_error(cx, Error::InvalidState(None));
    }
    global.tokens().port().request(
        cx,
        &global,
        promise,
        None,
        RequestBody::QueryPermission(feature),
        Answer::Permission(Dom::from_ref(&**status)),
    );
}

/// Puts the broker's answer into the status.
pub(crate) fn set_state(status: &PermissionStatus, state: PermissionState) {
    status.set_state(match state {
        PermissionState::Granted => DomPermissionState::Granted,
        PermissionState::Denied => DomPermissionState::Denied,
        PermissionState::Prompt => DomPermissionState::Prompt,
    });
}
