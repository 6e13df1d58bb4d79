"""env_meta JSONs and env_args: what the engine does is accepted, anything else refused by name."""

from __future__ import annotations

import copy
import json

import pytest

from env.errors import EnvError
from env.robomimic.env_meta import FOLDER, TASKS, check_configured, check_env_args, check_env_meta

PUBLISHED = {  # spec 5.4: name, robots, cameras, observation dimensions
    "lift": ("Lift", 1, ("robot0_eye_in_hand",), 19),
    "can": ("PickPlaceCan", 1, ("robot0_eye_in_hand",), 23),
    "square": ("NutAssemblySquare", 1, ("agentview",), 23),
    "transport": ("TwoArmTransport", 2, ("shouldercamera0", "shouldercamera1"), 59),
}


@pytest.mark.parametrize("task", PUBLISHED)
def test_the_shipped_files_are_the_published_ones(task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the path in a configuration is relative to the repository, wherever one stands
    name, arms, cameras, _ = PUBLISHED[task]
    state = check_env_meta(f"cfg/robomimic/env_meta/{task}.json", task, images=False)
    image = check_env_meta(f"cfg/robomimic/env_meta/{task}-img.json", task, images=True)
    assert (state.images, image.images) == ((), cameras)
    for meta, size in ((state, 84), (image, 96)):
        assert (meta.task, meta.version, meta.warnings) == (task, (1, 4, 1), ())
        assert meta.env_kwargs["robots"] == ["Panda"] * arms
        assert meta.env_kwargs["camera_heights"] == meta.env_kwargs["camera_widths"] == size
        assert meta.env_kwargs["has_offscreen_renderer"] == meta.env_kwargs["use_camera_obs"] == (size == 96)
    assert json.loads((FOLDER / f"{task}.json").read_text())["env_name"] == name
    assert ("env_configuration" in state.env_kwargs) == (task == "transport")


@pytest.mark.parametrize("task", PUBLISHED)
def test_observations_and_actions_of_a_task(task):
    facts, (_, arms, cameras, dim) = TASKS[task], PUBLISHED[task]
    assert sum(facts.obs_dims().values()) == dim and list(facts.obs_dims())[-1] == "object"
    assert sum(facts.obs_dims(use_object=False).values()) == 9 * arms
    assert facts.action_dim == 7 * arms and facts.cameras == cameras


def args(task="lift", **env_kwargs):
    meta = json.loads((FOLDER / f"{task}.json").read_text())
    meta["env_kwargs"] |= env_kwargs
    return meta


def controller(task="lift", **settings):
    meta = args(task)
    meta["env_kwargs"]["controller_configs"] |= settings
    return meta


def without(key):
    meta = args()
    del meta["env_kwargs"]["controller_configs"][key]
    return meta


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        (args() | {"env_name": "Stack"}, "env_name: expected Lift or PickPlaceCan.*, found 'Stack'"),
        (args() | {"type": 2}, r"type: expected 1 \(robosuite\), found 2"),
        (args() | {"env_kwargs": None}, "env_kwargs: expected the arguments"),
        (args(robots=["Sawyer"]), r"env_kwargs\.robots: expected \['Panda'\], found \['Sawyer'\]"),
        (args("transport", robots=["Panda"]), r"robots: expected \['Panda', 'Panda'\]"),
        (args("transport", env_configuration="single-arm-parallel"), "env_configuration: expected single-arm-opposed"),
        (args(control_freq=10), r"env_kwargs\.control_freq: expected 20, found 10"),
        (args(gripper_types="RethinkGripper"), "gripper_types: expected 'default', found 'RethinkGripper'"),
        (
            args(controller_configs=None),
            "controller_configs: expected the settings of an OSC_POSE controller, found None",
        ),
        (args(controller_configs=[{}, {}]), r"controller_configs: expected one per robot \(1\), found 2"),
        (controller(type="JOINT_POSITION"), r"controller_configs\.type: expected OSC_POSE, found JOINT_POSITION"),
        (controller(kp=300), r"controller_configs\.kp: expected 150, found 300"),
        (controller(kp=[150, 150, 150, 150, 150, 100]), r"kp: expected 150, found \[150, 150"),
        (controller(damping=0.5), r"damping_ratio: expected 1, found 0\.5"),
        (controller(output_max=[0.1] * 6), r"output_max: expected \[0\.05.*found \[0\.1"),
        (controller(impedance_mode="variable_kp"), "impedance_mode: expected fixed"),
        (controller(control_delta=False), "input_type: expected delta, found absolute"),
        (controller(uncouple_pos_ori=False), "uncouple_pos_ori: expected true, found false"),
        (controller(interpolation="linear"), "interpolation: expected null, found linear"),
        (controller(position_limits=[[0, 0, 0], [1, 1, 1]]), "position_limits: expected null"),
        (controller(input_ref_frame="gripper"), "input_ref_frame: expected world, found 'gripper'"),
        (controller("transport", input_ref_frame="base"), "input_ref_frame: expected world, found base: .*90 degrees"),
        (without("kp"), r"controller_configs\.kp: expected 150, found nothing"),
        (without("control_delta"), "input_type: expected delta, found nothing"),
        ("{", "no JSON"),
        ("[1]", "expected a JSON object"),
    ],
)
def test_what_the_engine_does_not_do_is_refused_by_name(meta, message):
    with pytest.raises(EnvError, match="^here: .*" + message):
        check_env_args(meta, "here")


def test_all_differences_are_told_at_once():
    with pytest.raises(EnvError, match=r"control_freq.*kp: .*damping"):
        check_env_args(
            controller(kp=1, damping=2)
            | {"env_kwargs": controller(kp=1, damping=2)["env_kwargs"] | {"control_freq": 5}},
            "x",
        )


def composite(task="lift", nested=False, **settings):
    """What robosuite 1.5 writes: a composite controller with new names."""
    meta = copy.deepcopy(args(task))
    old = meta["env_kwargs"]["controller_configs"]
    arm = {k: v for k, v in old.items() if k not in ("damping", "damping_limits", "control_delta")}
    arm |= {
        "damping_ratio": 1,
        "damping_ratio_limits": [0, 10],
        "input_type": "delta",
        "gripper": {"type": "GRIP"},
    } | settings
    parts = {"arms": {"right": arm}} if nested else {"right": arm, "left": arm | {"kp": 1}}
    meta["env_version"], meta["env_kwargs"]["controller_configs"] = "1.5.1", {"type": "BASIC", "body_parts": parts}
    if task == "transport":
        meta["env_kwargs"]["env_configuration"] = "opposed"
        meta["env_kwargs"]["controller_configs"] = [copy.deepcopy(meta["env_kwargs"]["controller_configs"])] * 2
    return meta


@pytest.mark.parametrize("nested", [False, True])
def test_composite_controllers_of_robosuite_15(nested):
    meta = check_env_args(json.dumps(composite(nested=nested, input_ref_frame="world")), "x")
    assert meta.version == (1, 5, 1) and not meta.warnings
    assert not check_env_args(composite("transport", input_ref_frame="world"), "x", "transport").warnings
    with pytest.raises(EnvError, match=r"body_parts\.right\.kp: expected 150, found 100"):
        check_env_args(composite(nested=nested, input_ref_frame="world", kp=100), "x")
    with pytest.raises(EnvError, match=r"body_parts\.right: expected the settings"):
        check_env_args(args(controller_configs={"type": "BASIC", "body_parts": {}}), "x")
    with pytest.raises(EnvError, match=r"type: expected BASIC, found 'WHOLE_BODY_IK'"):
        check_env_args(
            args(controller_configs=composite()["env_kwargs"]["controller_configs"] | {"type": "WHOLE_BODY_IK"}), "x"
        )


@pytest.mark.parametrize("settings", [{}, {"input_ref_frame": "base"}])  # base is 1.5's default
def test_base_frame_is_the_worlds_for_one_arm_only(settings):
    assert "base" in check_env_args(composite(**settings), "x").warnings[0]
    with pytest.raises(EnvError, match=r"\[0\]\.body_parts\.right\.input_ref_frame"):
        check_env_args(composite("transport", **settings), "x")


def test_shaped_rewards_are_a_warning():
    assert "reward_shaping" in check_env_args(args(reward_shaping=True), "x").warnings[0]


@pytest.mark.parametrize(
    ("task", "images", "message"),
    [
        ("can", None, r"lift\.json: env_name: expected PickPlaceCan, found 'Lift'"),
        ("lift", True, r"use_camera_obs: expected True, found False.*lift-img\.json"),
    ],
)
def test_a_configurations_file_must_fit(task, images, message):
    with pytest.raises(EnvError, match="robomimic_env_cfg_path: .*" + message):
        check_env_meta(FOLDER / "lift.json", task, images)


def test_a_configurations_env_section_must_agree():
    seen = {"robomimic_image": {"image_keys": ["agentview_image"]}}
    check_configured(None, {"name": "square"})
    check_configured("no such file", {"name": "a task of somebody else's"})
    check_configured("cfg/robomimic/env_meta/square.json", {"name": "square", "wrappers": {"robomimic_lowdim": {}}})
    check_configured("cfg/robomimic/env_meta/square-img.json", {"name": "square", "wrappers": seen})
    with pytest.raises(EnvError, match=r"use_camera_obs: expected True, found False.*square-img\.json"):
        check_configured("cfg/robomimic/env_meta/square.json", {"name": "square", "wrappers": seen})
    with pytest.raises(EnvError, match=r"use_camera_obs: expected False, found True"):
        check_configured("cfg/robomimic/env_meta/lift-img.json", {"name": "lift"})
    with pytest.raises(
        EnvError, match="camera_names: expected agentview as .*image_keys says, found robot0_eye_in_hand"
    ):
        check_configured("cfg/robomimic/env_meta/lift-img.json", {"name": "lift", "wrappers": seen})


def test_a_missing_file_lists_what_there_is(tmp_path):
    with pytest.raises(EnvError, match=r"nothing\.json cannot be read.*can-img\.json.*transport\.json"):
        check_env_meta(tmp_path / "nothing.json", "lift")


def test_robosuite_agrees_with_the_facts():
    """The engine's own robosuite, asked for its controller in the words of the file."""
    pytest.importorskip("robosuite")
    from env.robomimic.suite import arm_facts, make_suite_env

    env = make_suite_env("Lift", ["Panda"], seed=0)
    kp, position, rotation = arm_facts(env)[1:4]
    settings = args()["env_kwargs"]["controller_configs"]
    assert (kp, position, rotation) == (settings["kp"], settings["output_max"][0], settings["output_max"][3])
    assert env.control_freq == args()["env_kwargs"]["control_freq"]
    env.close()
