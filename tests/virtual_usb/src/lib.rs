/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! A stand-in for libudev that `pcscd` is started with (`LD_PRELOAD`), so that tests can plug USB
//! readers in and pull them out. Debian's `pcscd` adds and removes readers in no other way.
//!
//! It listens on the Unix datagram socket that the environment variable [`SOCKET_VARIABLE`] names.
//! Each datagram is what the kernel would say of one USB interface: four words, the action (`add`
//! or `remove`), the interface's name, and its device's vendor and product ids in hexadecimal. At
//! the start nothing is plugged in.
//!
//! Only what pcscd 1.9 and 2.x call is here, with the signatures of libudev.h; and
//! [`IFDHCreateChannel`], because the driver `vpcd` of vsmartcard has no USB devices.

use std::ffi::{CStr, CString, c_char, c_int, c_long, c_ulong, c_void};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::ptr;

/// The environment variable with the path of the socket.
pub const SOCKET_VARIABLE: &str = "VIRTUAL_USB_SOCKET";
/// The environment variable with the TCP port on which a USB reader waits for its card.
pub const PORT_VARIABLE: &str = "VIRTUAL_USB_PORT";
/// The environment variable with the path of the copy of `vpcd` that serves USB readers.
pub const USB_DRIVER_VARIABLE: &str = "VIRTUAL_USB_DRIVER";
/// The environment variable with the path of the copy of `vpcd` that serves other readers.
pub const SERIAL_DRIVER_VARIABLE: &str = "VIRTUAL_SERIAL_DRIVER";

/// The most that a datagram says, in bytes.
const MAX_MESSAGE: usize = 256;

/// One USB interface, and its device.
pub struct Device {
    action: CString,
    name: CString,
    vendor: CString,
    product: CString,
    node: CString,
}

impl Device {
    fn parse(message: &[u8]) -> Option<Self> {
        let mut words = message.split(u8::is_ascii_whitespace);
        let mut word = || CString::new(words.next()?).ok();
        let (action, name, vendor, product) = (word()?, word()?, word()?, word()?);
        let node = CString::new([b"/dev/bus/usb/", name.as_bytes()].concat()).ok()?;
        Some(Self {
            action,
            name,
            vendor,
            product,
            node,
        })
    }
}

/// What pcscd is given where it needs a context or an enumeration: it only passes it on.
const UNUSED: *mut c_void = ptr::dangling_mut();

/// See libudev.h.
#[unsafe(no_mangle)]
pub extern "C" fn udev_new() -> *mut c_void {
    UNUSED
}

/// See libudev.h.
#[unsafe(no_mangle)]
pub extern "C" fn udev_unref(_: *mut c_void) -> *mut c_void {
    ptr::null_mut()
}

/// See libudev.h.
#[unsafe(no_mangle)]
pub extern "C" fn udev_enumerate_new(_: *mut c_void) -> *mut c_void {
    UNUSED
}

/// See libudev.h.
#[unsafe(no_mangle)]
pub extern "C" fn udev_enumerate_unref(_: *mut c_void) -> *mut c_void {
    ptr::null_mut()
}

/// See libudev.h.
#[unsafe(no_mangle)]
pub extern "C" fn udev_enumerate_add_match_subsystem(_: *mut c_void, _: *const c_char) -> c_int {
    0
}

/// See libudev.h.
#[unsafe(no_mangle)]
pub extern "C" fn udev_enumerate_scan_devices(_: *mut c_void) -> c_int {
    0
}

/// See libudev.h. There are none.
#[unsafe(no_mangle)]
pub extern "C" fn udev_enumerate_get_list_entry(_: *mut c_void) -> *mut c_void {
    ptr::null_mut()
}

/// See libudev.h.
#[unsafe(no_mangle)]
pub extern "C" fn udev_list_entry_get_next(_: *mut c_void) -> *mut c_void {
    ptr::null_mut()
}

/// See libudev.h.
#[unsafe(no_mangle)]
pub extern "C" fn udev_list_entry_get_name(_: *mut c_void) -> *const c_char {
    ptr::null()
}

/// See libudev.h.
#[unsafe(no_mangle)]
pub extern "C" fn udev_device_new_from_syspath(_: *mut c_void, _: *const c_char) -> *mut Device {
    ptr::null_mut()
}

/// See libudev.h. Fails where there is no place for the socket.
#[unsafe(no_mangle)]
pub extern "C" fn udev_monitor_new_from_netlink(
    _: *mut c_void,
    _: *const c_char,
) -> *mut UnixDatagram {
    let socket = std::env::var_os(SOCKET_VARIABLE).and_then(|path| UnixDatagram::bind(path).ok());
    socket.map_or(ptr::null_mut(), |socket| Box::into_raw(Box::new(socket)))
}

/// See libudev.h. Everything that is plugged in is a USB interface.
#[unsafe(no_mangle)]
pub extern "C" fn udev_monitor_filter_add_match_subsystem_devtype(
    _: *mut UnixDatagram,
    _: *const c_char,
    _: *const c_char,
) -> c_int {
    0
}

/// See libudev.h.
#[unsafe(no_mangle)]
pub extern "C" fn udev_monitor_enable_receiving(_: *mut UnixDatagram) -> c_int {
    0
}

/// See libudev.h.
///
/// # Safety
///
/// The monitor is one from [`udev_monitor_new_from_netlink`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn udev_monitor_get_fd(monitor: *mut UnixDatagram) -> c_int {
    // SAFETY: the caller's promise; monitors are never freed.
    unsafe { monitor.as_ref() }.map_or(-1, AsRawFd::as_raw_fd)
}

/// See libudev.h.
///
/// # Safety
///
/// The monitor is one from [`udev_monitor_new_from_netlink`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn udev_monitor_receive_device(monitor: *mut UnixDatagram) -> *mut Device {
    // SAFETY: the caller's promise; monitors are never freed.
    let socket = unsafe { monitor.as_ref() };
    let mut message = [0; MAX_MESSAGE];
    let length = socket.and_then(|socket| socket.recv(&mut message).ok());
    let device = length.and_then(|length| Device::parse(message.get(..length)?));
    device.map_or(ptr::null_mut(), |device| Box::into_raw(Box::new(device)))
}

/// See libudev.h. The device of an interface belongs to it.
#[unsafe(no_mangle)]
pub extern "C" fn udev_device_get_parent_with_subsystem_devtype(
    device: *mut Device,
    _: *const c_char,
    _: *const c_char,
) -> *mut Device {
    device
}

/// See libudev.h.
///
/// # Safety
///
/// The device is one from [`udev_monitor_receive_device`], and is not used afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn udev_device_unref(device: *mut Device) -> *mut Device {
    if !device.is_null() {
        // SAFETY: the caller's promise; it has the only reference.
        drop(unsafe { Box::from_raw(device) });
    }
    ptr::null_mut()
}

/// See libudev.h.
///
/// # Safety
///
/// The device is one from [`udev_monitor_receive_device`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn udev_device_get_action(device: *mut Device) -> *const c_char {
    // SAFETY: the caller's promise.
    unsafe { device.as_ref() }.map_or(ptr::null(), |device| device.action.as_ptr())
}

/// See libudev.h.
///
/// # Safety
///
/// The device is one from [`udev_monitor_receive_device`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn udev_device_get_sysname(device: *mut Device) -> *const c_char {
    // SAFETY: the caller's promise.
    unsafe { device.as_ref() }.map_or(ptr::null(), |device| device.name.as_ptr())
}

/// See libudev.h.
///
/// # Safety
///
/// The device is one from [`udev_monitor_receive_device`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn udev_device_get_devnode(device: *mut Device) -> *const c_char {
    // SAFETY: the caller's promise.
    unsafe { device.as_ref() }.map_or(ptr::null(), |device| device.node.as_ptr())
}

/// See libudev.h.
///
/// # Safety
///
/// The device is one from [`udev_monitor_receive_device`], and the name ends with a null byte.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn udev_device_get_sysattr_value(
    device: *mut Device,
    name: *const c_char,
) -> *const c_char {
    // SAFETY: the caller's promise.
    let Some(device) = (unsafe { device.as_ref() }) else {
        return ptr::null();
    };
    // SAFETY: the caller's promise.
    match unsafe { CStr::from_ptr(name) }.to_bytes() {
        b"idVendor" => device.vendor.as_ptr(),
        b"idProduct" => device.product.as_ptr(),
        b"bInterfaceNumber" => c"00".as_ptr(),
        // It has neither a serial number nor a name for its interface.
        _ => ptr::null(),
    }
}

/// `IFDHCreateChannel` of ifdhandler.h.
type CreateChannel = unsafe extern "C" fn(c_ulong, c_ulong) -> c_long;

const COMMUNICATION_ERROR: c_long = 612;

/// A symbol of a library that is loaded already.
fn symbol(path_variable: &str, name: &CStr) -> Option<*mut c_void> {
    let path = CString::new(std::env::var(path_variable).ok()?).ok()?;
    // SAFETY: both strings end with a null byte, and no library is loaded that was not before.
    let symbol = unsafe {
        let library = libc::dlopen(path.as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD);
        if library.is_null() {
            return None;
        }
        libc::dlsym(library, name.as_ptr())
    };
    (!symbol.is_null()).then_some(symbol)
}

/// `vpcd` calls this function of its own for the reader that its variable `hostname` describes,
/// and so that a program can take its place. It has taken the name of a USB device ("usb:1209/...")
/// for a host to call and a port; here it waits for its card, on the port of this process.
///
/// # Safety
///
/// The caller is one of the two drivers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn IFDHCreateChannel(lun: c_ulong, channel: c_ulong) -> c_long {
    let mut driver = SERIAL_DRIVER_VARIABLE;
    let mut port = Some(channel);
    if let Some(host) = symbol(USB_DRIVER_VARIABLE, c"hostname") {
        // SAFETY: vpcd declares it as a pointer to characters, which is null where it is to wait.
        // pcscd starts one reader at a time.
        let host = unsafe { &mut *host.cast::<*const c_char>() };
        if !host.is_null() {
            *host = ptr::null();
            driver = USB_DRIVER_VARIABLE;
            port = std::env::var(PORT_VARIABLE)
                .ok()
                .and_then(|port| port.parse().ok());
        }
    }
    let (Some(function), Some(port)) = (symbol(driver, c"IFDHCreateChannel"), port) else {
        return COMMUNICATION_ERROR;
    };
    // SAFETY: that is the function's type in ifdhandler.h.
    let function = unsafe { std::mem::transmute::<*mut c_void, CreateChannel>(function) };
    // SAFETY: the arguments are what the driver would have passed to it.
    unsafe { function(lun, port) }
}
