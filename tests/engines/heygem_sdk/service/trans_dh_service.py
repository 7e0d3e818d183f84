"""`TransDhTask.work` as its callers know it: blocks, swallows every exception into the log, returns nothing."""

import multiprocessing
import os
import shutil
import subprocess
import sys
import time
import traceback

from y_utils.config import GlobalConfig

# A compiled module knows itself by its bare name only: what it spawns looks for that.
sys.modules[__name__.rpartition(".")[2]] = sys.modules[__name__]
__name__ = __name__.rpartition(".")[2]

FPS = 25
WIDTH, HEIGHT = 96, 64


def say(level, text):
    os.makedirs(os.path.dirname(GlobalConfig.log), exist_ok=True)
    with open(GlobalConfig.log, "a", encoding="utf-8") as stream:
        stream.write("[%s] [process.py[line:108]] [%s] [%s]\n" % (time.strftime("%F %T"), level, text))


def init_wh(code, answers):
    say("INFO", ">>> init_wh_process进程启动")
    answers.put(0.88)


def audio_transfer(code, frames, fault, images):
    """Makes the frames: a bar that moves from left to right."""
    import numpy

    say("INFO", "[%s]任务视频驱动队列启动 batch_size:%d, len:%d" % (code, GlobalConfig.batch_size, frames))
    if fault == "grandchild":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        time.sleep(600)
    if fault == "module":
        raise ModuleNotFoundError("No module named 'trans_dh_service'", name="trans_dh_service")
    for first in range(0, frames, GlobalConfig.batch_size):
        if fault == "die_first" or (fault == "die_middle" and first >= frames // 2):
            os.kill(os.getpid(), 9)
        if fault == "exit_middle" and first >= frames // 2:
            os._exit(1)
        if fault == "hang" and first >= frames // 2:
            time.sleep(600)
        if fault == "reason" and first >= frames // 2:
            images.put((False, "", None))
            return
        if fault in ("slow", "exit_writer"):
            time.sleep(0.2)
        batch = []
        for index in range(first, min(first + GlobalConfig.batch_size, frames)):
            frame = numpy.full((HEIGHT, WIDTH, 3), 40, numpy.uint8)
            frame[:, index % (WIDTH - 8) : index % (WIDTH - 8) + 8] = 220
            batch.append(frame)
        images.put((None, "", batch))
        say("INFO", "audio_transfer >>>>>>>>>>> 发送完成数据大小:%d, frameId:%d" % (len(batch), first))
    if fault == "die_last":
        os.kill(os.getpid(), 9)
    images.put((True, "", None))
    images.close()
    images.join_thread()


def write_video(output_imgs_queue, *more, **others):
    """The SDK's own: ends before it answers, as the one that its users pass around."""
    while output_imgs_queue.get()[0] is not True:
        pass
    exit(0)


class TransDhTask:
    def __init__(self):
        self.task_dic = {}
        say("INFO", "TransDhTask init")

    def work(self, audio_path, video_path, code, watermark_switch, digital_auth, chaofen, pn):
        say("INFO", "任务:%s -> audio_url:%s  video_url:%s" % (code, audio_path, video_path))
        try:
            self._work(audio_path, video_path, code, watermark_switch, digital_auth)
        except Exception as error:
            say("ERROR", "[%s]任务执行失败，异常信息:[%s]" % (code, error))
            traceback.print_exc()
        say("INFO", ">>> 任务:%s 耗时" % code)

    def _work(self, audio_path, video_path, code, watermark_switch, digital_auth):
        video, audio = (os.path.join(GlobalConfig.temp_dir, code + end) for end in ("_format.mp4", "_format.wav"))
        fault = os.path.basename(os.path.realpath(video_path)).split(".")[1]
        # Paths go into a shell as they are.
        if os.system("ffmpeg -loglevel error -i %s -vcodec copy -an -y %s" % (video_path, video)):
            raise RuntimeError("[%s]预处理失败，异常信息:[format video error]" % code)
        if os.system("ffmpeg -loglevel error -i %s -ac 1 -ar 16000 -acodec pcm_s16le -y %s" % (audio_path, audio)):
            raise RuntimeError("[%s]预处理失败，异常信息:[format audio error]" % code)
        frames = round((os.path.getsize(audio) - 78) / 32000 * FPS)
        answers, images, results = (multiprocessing.Queue() for _ in range(3))
        first = multiprocessing.Process(target=init_wh, args=(code, answers), name="init_wh")
        first.start()
        say("INFO", "[%s]init_wh result :[%s]" % (code, answers.get(timeout=20)))
        first.join()
        maker = multiprocessing.Process(
            target=audio_transfer, args=(code, frames, fault, images), name="audio_transfer"
        )
        writer = multiprocessing.Process(
            target=write_video,
            args=(images, GlobalConfig.temp_dir, GlobalConfig.result_dir, code, audio_path, results),
            kwargs={
                "width": WIDTH,
                "height": HEIGHT,
                "fps": FPS,
                "watermark_switch": watermark_switch,
                "digital_auth": digital_auth,
            },
            name="write_video",
        )
        maker.start()
        writer.start()
        if fault == "exit_writer":
            time.sleep(1)
            os.kill(writer.pid, 15)
        if fault == "no_answer":
            maker.join()
            writer.join()
            results = multiprocessing.Queue()  # what was put is lost
        while fault not in ("exit_writer", "die_last") and writer.is_alive():
            writer.join(1)
        done, text = results.get(timeout=1)  # the SDK waits 10 s; queue.Empty is without a text
        if not done:
            raise RuntimeError(text)
        maker.join()
        self.task_dic[code] = ("", "", text)
        if GlobalConfig.clean:
            for name in os.listdir(GlobalConfig.temp_dir):  # the SDK's sweep: everything there
                path = os.path.join(GlobalConfig.temp_dir, name)
                shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)
