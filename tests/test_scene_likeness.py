import pytest
import torch

from splatdistill.scene.likeness import (
    Look,
    color_distance,
    framed,
    hole_share,
    loose_share,
    match,
    second_front,
)

VIEWS, SIZE = 12, 64


def turntable(scale=1.0, turn=0, shift=0, front=(0.8, 0.1, 0.1), back=(0.1, 0.1, 0.8)):
    """Draw a block whose width and color change around: views on white, and their coverage."""
    alpha = torch.zeros(VIEWS, 1, SIZE, SIZE)
    rgb = torch.ones(VIEWS, 3, SIZE, SIZE)
    for v in range(VIEWS):
        angle = torch.tensor((v - turn) * 2 * torch.pi / VIEWS)
        half = round(scale * float(9 + 5 * angle.sin().abs()))
        tall = round(scale * 14)
        rows = slice(32 - tall + shift, 32 + tall + shift)
        columns = slice(32 - half, 32 + half)
        alpha[v, :, rows, columns] = 1
        mix = float((1 + angle.cos()) / 2)
        color = mix * torch.tensor(front) + (1 - mix) * torch.tensor(back)
        rgb[v, :, rows, columns] = color[:, None, None]
    return rgb, alpha


def test_size_and_place_do_not_count():
    one, other = Look.of(*turntable()), Look.of(*turntable(scale=1.5, shift=5))
    found = match(one, other)
    assert found.iou > 0.9 and found.color_distance < 0.05 and found.turn == 0


@pytest.mark.parametrize("turn", [0, 3, 7])
def test_the_best_turn_is_found(turn):
    found = match(Look.of(*turntable(turn=turn)), Look.of(*turntable()))
    assert found.turn == turn and found.iou > 0.95 and found.color_distance < 0.02


def test_other_shapes_and_colors_are_less_alike():
    thing = Look.of(*turntable())
    painted = match(thing, Look.of(*turntable(front=(0.1, 0.9, 0.1), back=(0.9, 0.9, 0.1))))
    assert painted.iou > 0.9 and painted.color_distance > 0.2
    rgb, alpha = turntable()
    thin = alpha * (torch.arange(SIZE).view(1, 1, 1, -1) - 32).abs().lt(3)
    assert match(thing, Look.of(rgb, thin)).iou < 0.7


def test_a_second_front_is_seen_where_there_is_a_back():
    true = Look.of(*turntable())
    rgb, alpha = turntable()
    doubled = rgb.clone()
    doubled[4:9] = rgb.roll(6, 0)[4:9]
    assert second_front(Look.of(doubled, alpha), true) is True
    assert second_front(true, true) is False
    plain = Look.of(*turntable(front=(0.5, 0.5, 0.5), back=(0.5, 0.5, 0.5)))
    assert second_front(true, plain) is None


def test_nothing_is_white_and_alike_to_nothing():
    rgb, alpha = torch.ones(VIEWS, 3, SIZE, SIZE), torch.zeros(VIEWS, 1, SIZE, SIZE)
    assert framed(rgb, alpha, 16).min() == 1.0
    assert match(Look.of(rgb, alpha), Look.of(*turntable())).iou == 0.0
    assert float(color_distance(torch.ones(1, 3, 2, 2), torch.ones(1, 3, 2, 2))) == 0.0


def test_loose_pieces_and_holes():
    shapes = torch.zeros(2, 16, 16, dtype=torch.bool)
    shapes[:, 2:12, 2:12] = True
    assert loose_share(shapes) == 0.0 and hole_share(shapes) == 0.0
    shapes[0, 14:16, 13:16] = True  # 6 pixels apart from 100
    assert loose_share(shapes) == pytest.approx(6 / 106 / 2)
    shapes[1, 5:7, 5:7] = False  # 4 of the 96 left
    assert hole_share(shapes) == pytest.approx(4 / 96 / 2)
    shapes[1, 2:7, 5:7] = False  # now it is a bay
    assert hole_share(shapes) == 0.0
    assert loose_share(torch.zeros(1, 4, 4, dtype=torch.bool)) == 0.0


def test_a_lamp_makes_no_front():
    front = torch.ones(12, 3, 8, 8)
    front[:, :, 2:6, 2:6] = torch.tensor([0.4, 0.3, 0.2])[:, None, None]
    turned = torch.arange(12) * 30.0
    lit = (0.75 + 0.25 * torch.deg2rad(turned).cos()).view(-1, 1, 1, 1)
    shapes = torch.ones(12, 32, 32, dtype=torch.bool)
    same = Look(shapes, torch.where(front < 0.97, front * lit, front))
    assert second_front(same, same) is None
