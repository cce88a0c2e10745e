/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Screenshots, decoded.

use std::collections::HashSet;
use std::io::{self, Cursor};

/// An image of eight bits a channel.
#[derive(Debug)]
pub struct Image {
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    channels: usize,
    pixels: Vec<u8>,
}

impl Image {
    /// Decodes a PNG.
    ///
    /// # Errors
    /// If it is none, or one of an unusual kind.
    pub fn from_png(png: &[u8]) -> io::Result<Image> {
        let mut decoder = png::Decoder::new(Cursor::new(png));
        decoder.set_transformations(png::Transformations::normalize_to_color8());
        let mut reader = decoder.read_info().map_err(io::Error::other)?;
        let size = reader
            .output_buffer_size()
            .ok_or_else(|| io::Error::other("the image is too large"))?;
        let mut pixels = vec![0; size];
        let info = reader.next_frame(&mut pixels).map_err(io::Error::other)?;
        pixels.truncate(info.buffer_size());
        Ok(Image {
            width: info.width,
            height: info.height,
            channels: info.color_type.samples(),
            pixels,
        })
    }

    /// Takes red, green and blue of all pixels, by rows.
    pub fn from_rgb(width: u32, height: u32, pixels: Vec<u8>) -> Image {
        Image {
            width,
            height,
            channels: 3,
            pixels,
        }
    }

    /// Encodes it as a PNG.
    ///
    /// # Errors
    /// If the pixels do not fit its size.
    pub fn to_png(&self) -> io::Result<Vec<u8>> {
        let mut png = Vec::new();
        let mut encoder = png::Encoder::new(&mut png, self.width, self.height);
        encoder.set_color(match self.channels {
            1 => png::ColorType::Grayscale,
            2 => png::ColorType::GrayscaleAlpha,
            3 => png::ColorType::Rgb,
            _ => png::ColorType::Rgba,
        });
        let mut writer = encoder.write_header().map_err(io::Error::other)?;
        writer
            .write_image_data(&self.pixels)
            .map_err(io::Error::other)?;
        drop(writer);
        Ok(png)
    }

    /// The colour at a position from the top left; red, green, blue. `None` outside the image.
    pub fn pixel(&self, x: u32, y: u32) -> Option<[u8; 3]> {
        if x >= self.width || y >= self.height {
            return None;
        }
        let start = (y as usize * self.width as usize + x as usize) * self.channels;
        let pixel = self.pixels.get(start..start + self.channels)?;
        Some(match pixel {
            [red, green, blue, ..] => [*red, *green, *blue],
            [grey, ..] => [*grey; 3],
            [] => return None,
        })
    }

    /// How many different colours it has: one if it is blank.
    pub fn colors(&self) -> usize {
        self.pixels
            .chunks_exact(self.channels)
            .collect::<HashSet<_>>()
            .len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_what_it_is_given() {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, 2, 1);
        encoder.set_color(png::ColorType::Rgba);
        let mut writer = encoder.write_header().unwrap();
        writer
            .write_image_data(&[1, 2, 3, 255, 9, 8, 7, 255])
            .unwrap();
        writer.finish().unwrap();
        let image = Image::from_png(&bytes).unwrap();
        assert_eq!((image.width, image.height, image.colors()), (2, 1, 2));
        assert_eq!(image.pixel(1, 0), Some([9, 8, 7]));
        assert_eq!(image.pixel(2, 0), None);
        assert!(Image::from_png(&bytes[..20]).is_err());
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let image = Image::from_rgb(1, 2, vec![1, 2, 3, 4, 5, 6]);
        let decoded = Image::from_png(&image.to_png().unwrap()).unwrap();
        assert_eq!((decoded.width, decoded.height), (1, 2));
        assert_eq!(decoded.pixel(0, 1), Some([4, 5, 6]));
        assert!(Image::from_rgb(2, 2, vec![0; 3]).to_png().is_err());
    }
}
