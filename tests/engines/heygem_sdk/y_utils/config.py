"""The settings, found by a relative path when the module is imported."""

import configparser

_parser = configparser.ConfigParser()
_parser.read("config/config.ini", encoding="utf-8")


class GlobalConfig:
    temp_dir = _parser.get("temp", "temp_dir")
    clean = _parser.getint("temp", "clean_switch")
    result_dir = _parser.get("result", "result_dir")
    batch_size = _parser.getint("digital", "batch_size")
    log = "%s/%s" % (_parser.get("log", "log_dir"), _parser.get("log", "log_file"))
