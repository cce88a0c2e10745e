/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Files that a content process cannot open, and asks the main process for.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use embedder_traits::{EmbedderControlId, EmbedderControlResponse, FilePickerRequest};
use net_traits::blob_url_store::UrlWithBlobClaim;
use net_traits::filemanager_thread::{FileManagerThreadMsg, ReadFileProgress};
use net_traits::policy_container::PolicyContainer;
use net_traits::request::{Destination, Referrer, RequestBuilder, RequestMode};
use net_traits::{CoreResourceMsg, FetchChannels, FetchResponseMsg, ResourceThreads};
use profile_traits::generic_callback::GenericCallback as ProfileCallback;
use servo::ServoUrl;
use servo_base::Epoch;
use servo_base::generic_channel::{GenericCallback, GenericSend};
use servo_base::id::{PipelineId, WebViewId};

static THREADS: Mutex<Option<ResourceThreads>> = Mutex::new(None);

/// Takes the threads of the main process that files are asked of.
pub fn prepare(threads: &ResourceThreads) {
    *THREADS.lock().unwrap_or_else(PoisonError::into_inner) = Some(threads.clone());
}

fn send(message: CoreResourceMsg) {
    let threads = THREADS.lock().unwrap_or_else(PoisonError::into_inner);
    let threads = threads.as_ref().expect("prepared before");
    threads.send(message).expect("the main process");
}

/// Asks the network thread for a local file, as a document does that is one itself.
pub fn fetch(path: &str, webview_id: WebViewId, pipeline_id: PipelineId) {
    let url = ServoUrl::parse(&format!("file://{path}")).expect("a path");
    let unclaimed = UrlWithBlobClaim::from_url_without_having_claimed_blob(url.clone());
    let request = RequestBuilder::new(Some(webview_id), unclaimed, Referrer::NoReferrer)
        .mode(RequestMode::Navigate)
        .destination(Destination::Document)
        .pipeline_id(Some(pipeline_id))
        .policy_container(PolicyContainer::default())
        .origin(url.origin());
    let callback = GenericCallback::new(|message| match message {
        Ok(FetchResponseMsg::ProcessResponseChunk(_, bytes)) => {
            eprintln!("hostile: file fetched, {}", String::from_utf8_lossy(&bytes));
        }
        Ok(FetchResponseMsg::ProcessResponseEOF(_, result, _)) => {
            eprintln!("hostile: fetch ended, {:?}", result.is_ok());
        }
        _ => {}
    });
    let channels = FetchChannels::ResponseMsg(callback.expect("a callback"));
    send(CoreResourceMsg::Fetch(request, channels));
}

/// Asks for a file as script does that WebDriver gives one to.
pub fn pick(path: &str, webview_id: WebViewId, pipeline_id: PipelineId) {
    let origin = ServoUrl::parse("https://attacker.example")
        .expect("a URL")
        .origin();
    let request = FilePickerRequest {
        origin: origin.clone(),
        current_paths: vec![PathBuf::from(path)],
        filter_patterns: Vec::new(),
        allow_select_multiple: false,
        accept_current_paths_for_testing: true,
    };
    let id = EmbedderControlId {
        webview_id,
        pipeline_id,
        index: Epoch(1),
    };
    let callback = ProfileCallback::new(move |answer| {
        let Ok(EmbedderControlResponse::FilePicker(Some(files))) = answer else {
            eprintln!("hostile: no file was picked");
            return;
        };
        for file in files {
            let read = ProfileCallback::new(|progress| {
                if let Ok(Ok(ReadFileProgress::Meta(blob))) = progress {
                    eprintln!(
                        "hostile: file picked, {}",
                        String::from_utf8_lossy(&blob.bytes)
                    );
                }
            });
            let read = read.expect("a callback");
            send(CoreResourceMsg::ToFileManager(
                FileManagerThreadMsg::ReadFile(read, file.id, origin.clone()),
            ));
        }
    });
    let callback = callback.expect("a callback");
    send(CoreResourceMsg::ToFileManager(
        FileManagerThreadMsg::SelectFiles(id, request, callback),
    ));
}
