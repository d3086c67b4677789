use job::config::{self, Cutmix, Flip, Mixup, Padding};
use tch::Device;

use super::crop_flip::{self, Source};
use super::*;

/// Returns the bytes of one image, `[1, H, W, C]`, whose pixels all differ.
fn ramp() -> Tensor {
    Tensor::arange(8 * 8 * 3, (Kind::Uint8, Device::Cpu)).view([1, 8, 8, 3])
}

fn cropped(mode: Padding, start: (i64, i64)) -> Tensor {
    let crop = Some(Crop { padding: 4, mode });
    let source = Source { start: Some(start), mirrored: false };
    crop_flip::apply(&ramp(), crop, std::iter::once(source))
}

fn crop() -> Augment {
    Augment::Crop(Crop::default())
}

fn flip(mode: FlipMode) -> Augment {
    Augment::Flip(Flip { mode })
}

fn photographs(count: i64) -> Tensor {
    Tensor::randint(256, [count, 32, 32, 3], (Kind::Uint8, Device::Cpu))
}

#[test]
fn a_centred_crop_changes_nothing_and_another_shifts() {
    for mode in [Padding::Zero, Padding::Reflect] {
        assert_eq!(cropped(mode, (4, 4)), ramp());
        let down = cropped(mode, (5, 4));
        assert_eq!(down.narrow(1, 0, 7), ramp().narrow(1, 1, 7));
        let last = down.narrow(1, 7, 1);
        match mode {
            Padding::Zero => assert_eq!(last.sum(Kind::Int64).int64_value(&[]), 0),
            Padding::Reflect => assert_eq!(last, ramp().narrow(1, 6, 1)),
        }
    }
}

#[test]
fn a_reflected_crop_is_cut_out_of_pytorchs_reflection_padding() {
    let padded = ramp().permute([0, 3, 1, 2]).to_kind(Kind::Float).reflection_pad2d([4i64; 4]);
    for (row, column) in [(0, 0), (8, 8), (1, 7), (6, 2)] {
        let expected = padded.narrow(2, row, 8).narrow(3, column, 8).permute([0, 2, 3, 1]);
        let found = cropped(Padding::Reflect, (row, column));
        assert_eq!(found.to_kind(Kind::Float), expected, "{row}, {column}");
    }
}

#[test]
fn a_mirrored_crop_is_the_crop_of_the_mirrored_image() {
    let crop = Some(Crop::default());
    let of = |pixels: &Tensor, start, mirrored| {
        let source = Source { start: Some(start), mirrored };
        crop_flip::apply(pixels, crop, std::iter::once(source))
    };
    assert_eq!(of(&ramp(), (4, 4), true), ramp().flip([2]));
    // Two columns to the left, in a mirror image, are two to the right.
    assert_eq!(of(&ramp(), (1, 2), true), of(&ramp(), (1, 2), false).flip([2]));
}

#[test]
fn a_random_flip_mirrors_about_half_of_the_images() {
    let augmenter = Augmenter::new(&[flip(FlipMode::Random)], 0).unwrap();
    let indices: Vec<u32> = (0..1000).collect();
    let flipped = augmenter.draw(&indices, 3).images.iter().filter(|image| image.flip).count();
    assert!((430..570).contains(&flipped), "{flipped}");
}

#[test]
fn an_alternating_flip_starts_like_a_random_one_and_then_mirrors_every_second_epoch() {
    let indices: Vec<u32> = (0..100).collect();
    let flips = |mode, epoch| -> Vec<bool> {
        let augmenter = Augmenter::new(&[flip(mode)], 7).unwrap();
        augmenter.draw(&indices, epoch).images.iter().map(|image| image.flip).collect()
    };
    let first = flips(FlipMode::Random, 0);
    let mirrored: Vec<bool> = first.iter().map(|flip| !flip).collect();
    for epoch in 0..4 {
        let expected = if epoch % 2 == 0 { &first } else { &mirrored };
        assert_eq!(&flips(FlipMode::Alternating, epoch), expected);
    }
}

#[test]
fn cutout_blanks_a_square_clipped_at_the_border() {
    let images = Tensor::ones([1, 3, 32, 32], (Kind::Float, Device::Cpu));
    let blanked = cutout::apply(&images, 16, &[(0.5, 0.0)]);
    // The centre is (16, 0): rows 8 to 23 and columns 0 to 7.
    let square = blanked.narrow(2, 8, 16).narrow(3, 0, 8);
    assert_eq!(square.sum(Kind::Float).double_value(&[]), 0.0);
    let left = blanked.sum(Kind::Float).double_value(&[]);
    assert_eq!(left, f64::from(3 * (32 * 32 - 16 * 8)));
}

#[test]
fn what_happens_to_an_image_does_not_depend_on_its_batch() {
    let all = [
        crop(),
        flip(FlipMode::Random),
        Augment::RandAugment(config::RandAugment::default()),
        Augment::ColorJitter(ColorJitter::default()),
    ];
    let augmenter = Augmenter::new(&all, 3).unwrap();
    let pixels = photographs(6);
    let together = augmenter.draw(&[5, 9, 2, 7, 1, 4], 2).change_pixels(pixels.shallow_clone());
    for (place, index) in [5, 9, 2, 7, 1, 4].into_iter().enumerate() {
        let image = pixels.narrow(0, place as i64, 1);
        let alone = augmenter.draw(&[index], 2).change_pixels(image.shallow_clone());
        assert_eq!(together.narrow(0, place as i64, 1), alone, "image {index}");
        let next_epoch = augmenter.draw(&[index], 3).change_pixels(image);
        assert_ne!(alone, next_epoch, "image {index}");
    }
}

fn mix(augment: &[Augment]) -> Mix {
    Mix::new(augment, 1).unwrap()
}

#[test]
fn what_an_image_is_mixed_with_does_not_depend_on_its_batch() {
    let mix = mix(&[Augment::Mixup(Mixup::default()), Augment::Cutmix(Cutmix::default())]);
    let indices: Vec<u32> = (0..64).collect();
    let on_one_rank = mix.draw(&indices, 2, 500, [32, 32]);
    let on_two = indices.chunks(32).flat_map(|part| mix.draw(part, 2, 500, [32, 32]));
    assert!(on_two.eq(on_one_rank.iter().cloned()));
    assert_ne!(mix.draw(&indices, 3, 500, [32, 32]), on_one_rank);
    let whole = |mixing: &&Mixing| mixing.rectangle == [0..32, 0..32];
    let mixed_up = on_one_rank.iter().filter(whole).count();
    assert!((16..48).contains(&mixed_up), "{mixed_up} of 64 are mixup's");
}

#[test]
fn mixed_images_are_weighted_sums_and_targets_have_the_larger_part_first() {
    let images = Tensor::ones([2, 3, 4, 4], (Kind::Float, Device::Cpu));
    let mixings = [
        Mixing { partner: 0, rectangle: [0..4, 0..4], strength: 0.75 },
        Mixing { partner: 0, rectangle: [1..3, 0..2], strength: 1.0 },
    ];
    let mixed = mix_images(&images, &(&images * 5.0), &mixings);
    assert_eq!(mixed.get(0), images.get(0) * 4.0);
    let expected = images.get(1).copy();
    let _ = expected.narrow(1, 1, 2).narrow(2, 0, 2).fill_(5.0);
    assert_eq!(mixed.get(1), expected);

    let labels = [Tensor::from_slice(&[3i64, 3]), Tensor::from_slice(&[7i64, 7])];
    let targets = mix_targets([&labels[0], &labels[1]], &mixings, [4, 4]);
    assert_eq!(targets.labels, Tensor::from_slice(&[7i64, 3]));
    let mixed = targets.mixed.unwrap();
    assert_eq!(mixed.labels, Tensor::from_slice(&[3i64, 7]));
    assert_eq!(mixed.share, Tensor::from_slice(&[0.25f32, 0.25]));
}
