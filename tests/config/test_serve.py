import pytest

from minionerec.cli import parse
from minionerec.config import Config, ServeConfig
from minionerec.errors import ConfigError

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"host": "0.0.0.0"}, "has no authentication. If that is meant, add --serve.open true"),
        ({"host": " "}, "serve.host is empty"),
        ({"port": 70000}, "serve.port is 70000; it must be from 0 to 65,535"),
        ({"queue": 10}, "smaller than serve.max_requests 64"),
        ({"named": ["stock.txt"]}, "serve.named[0] is 'stock.txt'; expected NAME=FILE"),
        ({"named": ["a=b.txt", "a=c.txt"]}, "two sets called 'a'"),
        ({"named": [f"{number}=f" for number in range(101)]}, "has 101 sets; 100 at most"),
    ],
)
def test_a_mistake_is_named(fields, words):
    with pytest.raises(ConfigError) as error:
        ServeConfig(**fields)
    assert words in str(error.value)


def test_histories_are_shown_unless_others_may_ask():
    assert ServeConfig().shows_examples and ServeConfig(open=True, examples=True).shows_examples
    assert not ServeConfig(open=True).shows_examples and not ServeConfig(examples=False).shows_examples
    assert ServeConfig(named=["in_stock=a=b.txt"]).named_files() == {"in_stock": "a=b.txt"}


def test_how_a_run_is_served_is_no_part_of_the_run():
    config = parse("serve", ["--serve.port", "9000", "--serve.named", "[in_stock=stock.txt]"])
    assert (config.serve.port, config.serve.named) == (9000, ["in_stock=stock.txt"])
    assert config.recorded == Config().recorded and "serve" not in config.recorded
